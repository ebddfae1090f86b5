"""conversations -> token ids and labels, as long as there is room."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from luthier.data.check import RowError, RowProblem
from luthier.data.tokenize import TYPECODE, Ids, TextTokenizer
from luthier.data.truncate import Render, count_fitting, find_uncut, share_above
from luthier.errors import DataError, TemplateError
from luthier.example import WEIGHT, Example, count_learned
from luthier.records import IGNORE_INDEX, Conversation, Message, Piece, Special, Token, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.record import Arguments
    from luthier.templates.chat_template import Renders

OnOverlong: TypeAlias = Literal["truncate", "drop", "split", "error"]

OVERLONG = "longer than cutoff_len"
UNLEARNED = "weight 0: nothing is learned from it"


@dataclass(frozen=True)
class EncodingOptions:
    """What of a conversation is learned, and how long it may be."""

    cutoff_len: int  # the most tokens of an example
    # only the last answer is learned, and the last turns have room first
    mask_history: bool = False
    train_on_prompt: bool = False  # prompts are learned as well
    on_overlong: OnOverlong = "truncate"  # what becomes of a row that is longer
    # whether special tokens in contents are read as their letters
    split_special_tokens: bool = False

    @classmethod
    def of(cls, arguments: Arguments) -> EncodingOptions:
        """Those of a configuration."""
        data = arguments.data
        return cls(
            data.cutoff_len,
            data.mask_history,
            data.train_on_prompt,
            data.on_overlong,
            arguments.model.split_special_tokens,
        )


class LeftOut(NamedTuple):
    """A row that is no problem and still not used: `OVERLONG` or `UNLEARNED`."""

    reason: str
    num_tokens: int = 0


Outcome: TypeAlias = list[Example] | RowProblem | LeftOut
"""What becomes of a row: one example, several with `split`, or none."""

IdsOf: TypeAlias = dict[Any, Ids]
"""Pieces by their `_key`, with the ids of each."""

Side: TypeAlias = tuple[Ids, Ids]
"""The ids of a prompt or an answer, and the label of each."""


class _Cut(NamedTuple):
    """What there is room for of a row."""

    conversation: Conversation  # the messages of the turns
    turns: list[tuple[Side, Side]]  # the turns
    num_cut: int  # the tokens without room
    ends: bool  # whether the last answer is whole


class Encoder:
    """Encodes many conversations with one call of the tokenizer.

    Every piece of a template is tokenised on its own, or behind what it says, without added special
    tokens, so the ids of a row are those of its pieces one after the other.

    Args:
        tokenizer: fitted to the template.
        template: renders the conversations.
        options: what is learned, and the room.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Renders, options: EncodingOptions
    ) -> None:
        self.tokenizer, self.template, self.options = tokenizer, template, options
        self._texts = TextTokenizer(tokenizer, splits_special=options.split_special_tokens)
        self._room = options.cutoff_len - int(template.efficient_eos)

    def learn(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """What each row gives to learn from; a row of which nothing is learned is a problem."""
        return self._outcomes(conversations, self._turns, self._learn)

    def ask(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """The prompt of each row's last answer, and that answer's ids as labels.

        Of a prompt that is too long the oldest turns go first, then the end of the question.
        """
        return self._outcomes(conversations, self._last_turn, self._ask)

    def judge(self, rows: Sequence[tuple[Conversation, Sequence[Message]]]) -> list[Outcome]:
        """Each row's answers behind its prompt, as sequences of one example; only they are learned.

        Where there is no room, prompt and longest answer are cut as those of `ask`, and the others
        to the length that it keeps; all keep the same prompt, as with LLaMA-Factory.
        """
        marked = [
            [self._mark(_with(prompt, (*prompt.messages, answer))) for answer in answers]
            for prompt, answers in rows
        ]
        rendered = [[self._render(one, self._last_turn) for one in row] for row in marked]
        ids = self._tokenise(_pieces(turns for row in rendered for turns in row), {})
        return [self._judge(*row, ids) for row in zip(marked, rendered, strict=True)]

    def turns(self, conversation: Conversation, *, judged: bool = False) -> list[Turn]:
        """The turns that are tokenised, of a judged answer one; see `tokenize.ContentMarks`."""
        render = self._last_turn if judged else self._turns
        return render(self._mark(conversation))

    def ids_of(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """The ids of each piece as they stand in every example, before anything is cut."""
        ids = self._tokenise(pieces, {})
        return [ids[_key(piece)].tolist() for piece in pieces]

    def _outcomes(
        self,
        conversations: Sequence[Conversation],
        render: Render,
        finish: Callable[[Conversation, list[Turn], IdsOf], Outcome],
    ) -> list[Outcome]:
        marked = [self._mark(one) for one in conversations]
        rendered = [self._render(one, render) for one in marked]
        ids = self._tokenise(_pieces(rendered), {})
        return [
            turns if isinstance(turns, RowProblem) else finish(one, turns, ids)
            for one, turns in zip(marked, rendered, strict=True)
        ]

    def _learn(
        self, conversation: Conversation, turns: list[Turn], ids: IdsOf, *, is_part: bool = False
    ) -> Outcome:
        num_tokens = sum(_count(turn, ids) for turn in turns)
        if num_tokens <= self._room:
            sides = [(_side(turn.prompt, ids), _side(turn.answer, ids)) for turn in turns]
            return self._put_together(conversation, sides)
        on_overlong = self.options.on_overlong
        if on_overlong in ("drop", "error"):
            return LeftOut(OVERLONG, num_tokens)
        if on_overlong == "split" and not is_part:
            return self._split(conversation, turns, ids)
        is_last = self.options.mask_history
        cut = self._cut(conversation, turns, ids, self._turns, keeps_last=is_last)
        if not isinstance(cut, _Cut):
            return cut
        return self._put_together(cut.conversation, cut.turns, cut.num_cut, ends=cut.ends)

    def _ask(self, conversation: Conversation, turns: list[Turn], ids: IdsOf) -> Outcome:
        (turn,), num_cut, ends = turns, 0, True
        (source, _), (target, _) = _side(turn.prompt, ids), _side(turn.answer, ids)
        if len(source) + len(target) > self._room:
            if self.options.on_overlong in ("drop", "error"):
                return LeftOut(OVERLONG, len(source) + len(target))
            cut = self._cut(conversation, turns, ids, self._last_turn, keeps_last=True)
            if not isinstance(cut, _Cut):
                return cut
            (((source, _), (target, _)),), num_cut, ends = cut.turns, cut.num_cut, cut.ends
        if self.template.efficient_eos and ends:
            target = target + array(TYPECODE, [self._eos()])
        return [Example(source, target, len(target), num_cut=num_cut)]

    def _judge(
        self, conversations: list[Conversation], rendered: list[list[Turn] | RowProblem], ids: IdsOf
    ) -> Outcome:
        sides: list[tuple[Ids, Ids]] = []
        for turns in rendered:
            if isinstance(turns, RowProblem):
                return turns
            sides.append((_side(turns[0].prompt, ids)[0], _side(turns[0].answer, ids)[0]))
        lengths = [len(source) + len(target) for source, target in sides]
        are_whole = [True] * len(sides)
        if max(lengths) > self._room:
            if self.options.on_overlong in ("drop", "error"):
                return LeftOut(OVERLONG, max(lengths))
            longest = lengths.index(max(lengths))
            turns = rendered[longest]
            assert not isinstance(turns, RowProblem)
            cut = self._cut(conversations[longest], turns, ids, self._last_turn, keeps_last=True)
            if not isinstance(cut, _Cut):
                return cut
            (((source, _), (kept, _)),) = cut.turns
            are_whole = [len(target) <= len(kept) for _, target in sides]
            sides = [(source, target[: len(kept)]) for _, target in sides]
        num_cut = sum(lengths) - sum(len(source) + len(target) for source, target in sides)
        input_ids, labels, ends = array(TYPECODE), array(TYPECODE), []
        for (source, target), is_whole in zip(sides, are_whole, strict=True):
            if self.template.efficient_eos and is_whole:
                target = target + array(TYPECODE, [self._eos()])
            input_ids += source + target
            labels += _ignored(len(source)) + target
            ends.append(len(source) + len(target))
        several = tuple(ends) if len(ends) > 1 else ()
        whole = max(lengths)
        return [Example(input_ids, labels, 1, several, num_cut=num_cut, num_whole=whole)]

    def _mark(self, conversation: Conversation) -> Conversation:
        """The same with marked special tokens, where those in contents are split."""
        marks = self._texts.marks
        if marks is None:
            return conversation
        messages = []
        for one in conversation.messages:
            own = self.template.content_words if one.role in ("assistant", "function") else ()
            content, said = marks.mark(one.content, own), marks.mark(one.said, own)
            messages.append(replace(one, content=content, said=said))
        system, tools = (
            text and marks.mark(text) for text in (conversation.system, conversation.tools)
        )
        return replace(conversation, messages=tuple(messages), system=system, tools=tools)

    def _turns(self, conversation: Conversation) -> list[Turn]:
        return self.template.turns(conversation, is_history_masked=self.options.mask_history)

    def _last_turn(self, conversation: Conversation) -> list[Turn]:
        question = _with(conversation, conversation.messages[:-1])
        return [self.template.turn(question, conversation.messages[-1])]

    def _render(self, conversation: Conversation, render: Render) -> list[Turn] | RowProblem:
        try:
            return render(conversation)
        except TemplateError as error:
            text = str(error).rstrip(".")
            fix = "" if "\n" in text else "Mend the tools or the calls of the row."
            problem = RowError("", "the template cannot render it", fix, f": {text}")
            return RowProblem.of(conversation.origin, problem)

    def _tokenise(self, pieces: Iterable[Piece], ids: IdsOf) -> IdsOf:
        """Adds the ids of pieces to those that are known, each text tokenised once."""
        ids.setdefault("", array(TYPECODE))
        new = dict.fromkeys(key for piece in pieces if (key := _key(piece)) not in ids)
        behind = [one for one in new if isinstance(one, tuple)]
        is_alike = bool(behind) and self._texts.reads_alike
        if is_alike:
            new |= dict.fromkeys(text for _, text in behind if text not in ids)
        texts = [one for one in new if isinstance(one, str)]
        if texts:
            ids |= zip(texts, self._texts.encode(texts), strict=True)
        if is_alike:
            ids |= {one: ids[one[1]] for one in behind}
        elif behind:
            ids |= zip(behind, self._texts.encode_behind(behind), strict=True)
        tokenizer = self.tokenizer
        for one in new:
            if isinstance(one, Special):
                is_bos = one is Special.BOS
                named = tokenizer.bos_token_id if is_bos else tokenizer.eos_token_id
                ids[one] = array(TYPECODE, [] if named is None else [named])
            elif isinstance(one, Token):
                named = tokenizer.convert_tokens_to_ids(one.text)
                is_unknown = named == tokenizer.unk_token_id and one.text != tokenizer.unk_token
                if named is None or is_unknown:
                    raise DataError(
                        f"template {self.template.name!r} needs the token {one.text!r}, which this "
                        "tokenizer does not have. Choose the template of the model."
                    )
                ids[one] = array(TYPECODE, [int(named)])
        return ids

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                f"template {self.template.name!r} ends answers with EOS, and this tokenizer has "
                "none. Choose the template of the model."
            )
        return int(self.tokenizer.eos_token_id)

    def _put_together(
        self,
        conversation: Conversation,
        turns: Sequence[tuple[Side, Side]],
        num_cut: int = 0,
        *,
        ends: bool = True,
    ) -> Outcome:
        """An example of turns that are as long as they shall be, if something of it is learned.

        `ends` says whether the last answer does.

        With `efficient_eos` an answer's EOS is the first label of the next prompt, with the
        answer's weight, and one more EOS ends the example. With `mask_history` none of those
        between turns is learned: there, only the last answer is. A message's own weight decides
        about it before both options.
        """
        options, has_eos = self.options, self.template.efficient_eos
        given = [message.weight for message in conversation.messages]
        marks: list[tuple[float | None, float | None]] = []
        if any(weight is not None for weight in given):
            # a template may put the first turns into one, so the turns are the last ones
            pairs = list(zip(given[::2], given[1::2], strict=True))
            marks = pairs[len(pairs) - len(turns) :]
        input_ids, labels = array(TYPECODE), array(TYPECODE)
        weights: list[tuple[int, float]] = []
        is_last_learned = False
        for at, ((source, source_labels), (target, target_labels)) in enumerate(turns):
            asked, answered = marks[at] if marks else (None, None)
            num_eos = 0
            if options.train_on_prompt if asked is None else asked:
                source_labels = source
            elif is_last_learned and source:
                source_labels = array(TYPECODE, [self._eos()]) + source_labels[1:]
                num_eos = 1
            if answered is not None:
                target_labels = target if answered else _ignored(len(target))
            input_ids += source
            input_ids += target
            labels += source_labels
            labels += target_labels
            weights += (
                (num_eos, weights[-1][1] if weights else 1.0),
                (len(source) - num_eos, 1.0 if asked is None else asked),
                (len(target), 1.0 if answered is None else answered),
            )
            is_last_learned = has_eos and not options.mask_history and answered != 0
        if has_eos and ends:
            eos = self._eos()
            input_ids.append(eos)
            is_learned = not marks or marks[-1][1] != 0
            labels.append(eos if is_learned else IGNORE_INDEX)
            weights.append((1, weights[-1][1] if weights else 1.0))
        num_units = count_learned(labels)
        if num_units:
            numbers = _spread(weights, conversation.weight)
            return [Example(input_ids, labels, num_units, token_numbers=numbers, num_cut=num_cut)]
        if num_cut:
            return LeftOut(OVERLONG, len(labels) + num_cut)
        if 0 in given:
            return LeftOut(UNLEARNED, len(labels))
        fix = "Write an answer, or leave the row out."
        error = RowError("", "no learned token is left", fix, ": its answers are empty")
        return RowProblem.of(conversation.origin, error)

    def _cut(
        self,
        conversation: Conversation,
        turns: Sequence[Turn],
        ids: IdsOf,
        render: Render,
        *,
        keeps_last: bool,
    ) -> _Cut | RowProblem | LeftOut:
        """As many whole turns as there is room for, and what fits of one more.

        Every prompt keeps its headers, the first one the system text and the tools; an answer that
        is cut loses its end. Where not even those fit, the row is left out. With `keeps_last` the
        oldest turns are left out and the last one is cut, not the first that does not fit. `ids`
        are of every piece; those of other turns that are rendered join them.
        """
        room, num_all = self._room, sum(_count(turn, ids) for turn in turns)
        if keeps_last:
            conversation, found = self._newest(conversation, turns, ids, render)
            if isinstance(found, RowProblem):
                return found
            turns = found
        ends = [0, *accumulate(_count(turn, ids) for turn in turns)]
        at = len(turns) - 1 if keeps_last else bisect_right(ends, room) - 1
        before, behind = find_uncut(conversation, at - len(turns), render)
        self._tokenise((*before, *behind), ids)
        sides = [(_side(turn.prompt, ids), _side(turn.answer, ids)) for turn in turns[: at + 1]]
        source, target = sides.pop()
        head, tail = _side(before, ids), _side(behind, ids)
        least = min(len(source[0]), len(head[0]) + 1 + len(tail[0]))
        shares = share_above(len(source[0]), len(target[0]), least, room - ends[at])
        if shares is None and (keeps_last or not sides):
            return LeftOut(OVERLONG, num_all)
        is_whole = True
        if shares is not None:
            is_whole = shares[1] == len(target[0])
            sides.append((_first(source, shares[0], tail), _first(target, shares[1], _NOTHING)))
        num_kept = sum(len(side[0]) for turn in sides for side in turn)
        messages = conversation.messages
        messages = messages[: len(messages) - 2 * (len(turns) - len(sides))]
        return _Cut(_with(conversation, messages), sides, num_all - num_kept, is_whole)

    def _newest(
        self, conversation: Conversation, turns: Sequence[Turn], ids: IdsOf, render: Render
    ) -> tuple[Conversation, list[Turn] | RowProblem]:
        """The last turns from a user's question on that fit; at least the last question's."""
        messages = conversation.messages
        starts = [at for at in range(2, len(messages), 2) if messages[at].role == "user"]
        if not starts:
            return conversation, list(turns)

        def turns_from(start: int) -> list[Turn] | RowProblem:
            found = self._render(_with(conversation, messages[start:]), render)
            self._tokenise(_pieces([found]), ids)
            return found

        def fits(start: int) -> bool:
            found = turns_from(start)
            if isinstance(found, RowProblem):
                return True
            return sum(_count(turn, ids) for turn in found) <= self._room

        at = bisect_left(starts, True, key=fits)
        start = starts[min(at, len(starts) - 1)]
        return _with(conversation, messages[start:]), turns_from(start)

    def _split(self, conversation: Conversation, turns: Sequence[Turn], ids: IdsOf) -> Outcome:
        """Rows of whole turns, as many in each as fit; a turn that fits nowhere is cut.

        Every part begins with the system text and the tools. It begins with a question where one
        is near enough, not with what a tool answered.
        """
        parts: list[Example] = []
        left_out: RowProblem | LeftOut = LeftOut(UNLEARNED)
        num_all, num_lost = sum(_count(turn, ids) for turn in turns), 0
        rest = conversation
        while rest.messages:
            lengths = [_count(turn, ids) for turn in turns]
            num_turns = count_fitting(rest, lengths, self._room)
            part = _with(rest, rest.messages[: 2 * num_turns])
            rest = _with(rest, rest.messages[2 * num_turns :])
            rendered = self._render(part, self._turns)
            following = self._render(rest, self._turns) if rest.messages else []
            self._tokenise(_pieces([rendered, following]), ids)
            outcome: Outcome = rendered if isinstance(rendered, RowProblem) else []
            if not isinstance(rendered, RowProblem):
                outcome = self._learn(part, rendered, ids, is_part=True)
            if isinstance(outcome, list):
                parts += outcome
            elif isinstance(outcome, RowProblem) or outcome.reason == OVERLONG:
                left_out = outcome
                num_lost += sum(lengths[:num_turns])
            if isinstance(following, RowProblem):
                left_out = following
                num_lost += sum(lengths[num_turns:])
                break
            turns = following
        if parts:
            parts[0] = replace(parts[0], num_cut=parts[0].num_cut + num_lost)
            return parts
        return left_out if isinstance(left_out, RowProblem) else LeftOut(left_out.reason, num_all)


def _first(side: Side, count: int, tail: Side) -> Side:
    """The first tokens of a side and its tail, `count` together."""
    if count >= len(side[0]):
        return side
    kept = count - len(tail[0])
    return side[0][:kept] + tail[0], side[1][:kept] + tail[1]


def _pieces(rendered: Iterable[list[Turn] | RowProblem]) -> Iterable[Piece]:
    for turns in rendered:
        if not isinstance(turns, RowProblem):
            for turn in turns:
                yield from turn.prompt
                yield from turn.answer


def _side(pieces: Iterable[Piece], ids: IdsOf) -> Side:
    joined, labels = array(TYPECODE), array(TYPECODE)
    for piece in pieces:
        tokens = ids[_key(piece)]
        joined += tokens
        labels += tokens if piece.is_learned else _ignored(len(tokens))
    return joined, labels


def _ignored(count: int) -> Ids:
    return _IGNORED * count


_IGNORED = array(TYPECODE, [IGNORE_INDEX])
_NOTHING = (array(TYPECODE), array(TYPECODE))


def _key(piece: Piece) -> Any:
    """What decides about the ids of a piece."""
    return (piece.behind, piece.content) if piece.behind else piece.content


def _count(turn: Turn, ids: IdsOf) -> int:
    return sum(len(ids[_key(piece)]) for side in (turn.prompt, turn.answer) for piece in side)


def _spread(parts: Sequence[tuple[int, float]], of_row: float | None) -> dict[str, Any]:
    """The weight of each token; nothing when all that is learned counts once."""
    factor = 1.0 if of_row is None else of_row
    if factor == 1 and all(weight in (0, 1) for _, weight in parts):
        return {}
    weights = array("f")
    for count, weight in parts:
        weights += array("f", [weight * factor]) * count
    return {WEIGHT: weights}


def _with(conversation: Conversation, messages: Sequence[Message]) -> Conversation:
    return replace(conversation, messages=tuple(messages))
