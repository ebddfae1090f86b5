"""conversations -> token ids and labels, as long as there is room."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from luthier.data.check import RowError, RowProblem
from luthier.data.frames import Frame, Framed, find_frames
from luthier.data.words import TYPECODE, Ids, TextTokenizer
from luthier.errors import DataError, TemplateError
from luthier.records import (
    IGNORE_INDEX,
    Conversation,
    Encoded,
    Message,
    Piece,
    Special,
    Token,
    Turn,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.data import DataArguments
    from luthier.templates.template import Renders

OnOverlong: TypeAlias = Literal["truncate", "drop", "split", "error"]

OVERLONG = "longer than cutoff_len"
UNLEARNED = "weight 0: nothing is learned from it"


@dataclass(frozen=True)
class EncodingOptions:
    """What of a conversation is learned, and how long it may be.

    Attributes:
        cutoff_len: the most tokens of an example.
        mask_history: only the last answer is learned, and the last turns have room first.
        train_on_prompt: prompts are learned as well.
        on_overlong: what becomes of a row that is longer.
    """

    cutoff_len: int
    mask_history: bool = False
    train_on_prompt: bool = False
    on_overlong: OnOverlong = "truncate"

    @classmethod
    def of(cls, data_args: DataArguments) -> EncodingOptions:
        """Those of a configuration."""
        return cls(
            data_args.cutoff_len,
            data_args.mask_history,
            data_args.train_on_prompt,
            data_args.on_overlong,
        )


EncodedOrProblem: TypeAlias = Encoded | RowProblem


class Example(NamedTuple):
    """An `Encoded` with its numbers in arrays.

    Attributes:
        input_ids: the tokens.
        labels: as many; for prompts the answer's tokens.
        num_cut: tokens that had no room.
        weights: as many float32 as tokens, how much the loss of each counts; None for one each.
    """

    input_ids: Ids
    labels: Ids
    num_cut: int = 0
    weights: Any = None

    def as_record(self) -> Encoded:
        """The same with lists."""
        weights = None if self.weights is None else self.weights.tolist()
        return Encoded(self.input_ids.tolist(), self.labels.tolist(), self.num_cut, weights)


class LeftOut(NamedTuple):
    """A row that is no problem and still not used: `OVERLONG` or `UNLEARNED`."""

    reason: str
    num_tokens: int = 0


Outcome: TypeAlias = list[Example] | RowProblem | LeftOut
"""What becomes of a row: one example, several with `split`, or none."""


def count_learned(encoded: Encoded) -> int:
    """How many positions are predicted: the first token never is."""
    labels = encoded.labels
    return len(labels) - 1 - labels[1:].count(IGNORE_INDEX) if labels else 0


def share_room(num_source: int, num_target: int, room: int) -> tuple[int, int]:
    """How many tokens of a prompt and its answer are kept.

    A short answer (under half the room) is kept whole, then a short prompt is; else both are cut
    in proportion.

    Args:
        num_source: the prompt's tokens.
        num_target: the answer's tokens.
        room: the most tokens of both together.

    Returns:
        The numbers kept of each.
    """
    if 2 * num_target < room:
        most = room
    elif 2 * num_source < room:
        most = room - num_source
    else:
        most = int(room * (num_target / (num_source + num_target)))
    kept = min(most, num_target)
    return min(max(room - kept, 0), num_source), kept


class Encoder:
    """Encodes many conversations with one call of the tokenizer.

    Every piece of a template is tokenised on its own, without added special tokens, so the ids of
    a row are those of its pieces one after the other.

    Args:
        tokenizer: fitted to the template.
        template: renders the conversations.
        options: what is learned, and the room.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Renders, options: EncodingOptions
    ) -> None:
        self.tokenizer, self.template, self.options = tokenizer, template, options
        self._texts = TextTokenizer(tokenizer)
        self._tokens: dict[str, int] = {}

    def encode(self, conversations: Sequence[Conversation]) -> list[EncodedOrProblem]:
        """Examples to learn from, one for each row; a row with nothing learned is a problem.

        With `on_overlong: split` a row that is too long gives its first part; see `learn`.
        """
        return [
            _as_record(conversation, outcome)
            for conversation, outcome in zip(conversations, self.learn(conversations), strict=True)
        ]

    def encode_prompts(self, conversations: Sequence[Conversation]) -> list[EncodedOrProblem]:
        """Prompts to answer, each with the ids of the answer that the row holds."""
        return [
            _as_record(conversation, outcome)
            for conversation, outcome in zip(conversations, self.ask(conversations), strict=True)
        ]

    def learn(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """What each row gives to learn from."""
        rendered = self._render_all(conversations)
        ids = self._tokenise(rendered)
        room = self._room()
        outcomes: list[Outcome] = []
        overlong: list[int] = []
        for conversation, turns in zip(conversations, rendered, strict=True):
            if isinstance(turns, RowProblem):
                outcomes.append(turns)
                continue
            lengths = [_count(turn, ids) for turn in turns]
            if sum(lengths) <= room:
                outcomes.append(self._finish(conversation, self._join(conversation, turns, ids)))
            elif self.options.on_overlong in ("drop", "error"):
                outcomes.append(LeftOut(OVERLONG, sum(lengths)))
            else:
                overlong.append(len(outcomes))
                outcomes.append([])
        if overlong:
            rows = [conversations[at] for at in overlong]
            shorten = self._split if self.options.on_overlong == "split" else self._truncate
            for at, outcome in zip(overlong, shorten(rows), strict=True):
                outcomes[at] = outcome
        return outcomes

    def ask(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """The prompt of each row's last answer, and that answer's ids as labels.

        Of a prompt that is too long the oldest turns go first, then the end of the question.
        """
        rendered = [self._render(one, self._last_turn) for one in conversations]
        ids = self._tokenise(rendered)
        outcomes: list[Outcome] = []
        for conversation, turns in zip(conversations, rendered, strict=True):
            if isinstance(turns, RowProblem):
                outcomes.append(turns)
                continue
            source, target = self._asked(turns[0], ids)
            if len(source) + len(target) <= self.options.cutoff_len:
                outcomes.append([Example(source, target)])
            elif self.options.on_overlong in ("drop", "error"):
                outcomes.append(LeftOut(OVERLONG, len(source) + len(target)))
            else:
                outcomes.append(self._shorten_prompt(conversation, len(source) + len(target)))
        return outcomes

    def _room(self) -> int:
        return self.options.cutoff_len - int(self.template.efficient_eos)

    def _turns(self, conversation: Conversation) -> list[Turn]:
        return self.template.turns(conversation, is_history_masked=self.options.mask_history)

    def _last_turn(self, conversation: Conversation) -> list[Turn]:
        return [self.template.turn(_question(conversation), conversation.messages[-1])]

    def _render_all(self, conversations: Sequence[Conversation]) -> list[list[Turn] | RowProblem]:
        return [self._render(one, self._turns) for one in conversations]

    def ids_of(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """The ids of each piece as they stand in every example, before anything is cut."""
        ids = self._tokenise([[Turn(tuple(pieces), ())]])
        return [list(ids[piece.content]) for piece in pieces]

    def _render(self, conversation: Conversation, render: Any) -> list[Turn] | RowProblem:
        try:
            turns: list[Turn] = render(conversation)
        except TemplateError as error:
            text = str(error).rstrip(".")
            fix = "" if "\n" in text else "Mend the tools or the calls of the row."
            problem = RowError("", "the template cannot render it", fix, f": {text}")
            return RowProblem.of(conversation.origin, problem)
        return turns

    def _tokenise(self, rendered: Iterable[list[Turn] | RowProblem]) -> dict[Any, Ids]:
        """The ids of every content, each text tokenised once."""
        return self._tokenise_pieces(
            piece
            for turns in rendered
            if not isinstance(turns, RowProblem)
            for turn in turns
            for side in (turn.prompt, turn.answer)
            for piece in side
        )

    def _tokenise_pieces(self, pieces: Iterable[Piece]) -> dict[Any, Ids]:
        contents = {piece.content for piece in pieces}
        texts = [content for content in contents if isinstance(content, str) and content]
        ids: dict[Any, Ids] = {"": array(TYPECODE)}
        ids |= zip(texts, self._texts.encode(texts), strict=True)
        for content in contents:
            if isinstance(content, Special):
                named = (
                    self.tokenizer.bos_token_id
                    if content is Special.BOS
                    else self.tokenizer.eos_token_id
                )
                ids[content] = array(TYPECODE, [] if named is None else [named])
            elif isinstance(content, Token):
                ids[content] = array(TYPECODE, [self._token(content.text)])
        return ids

    def _token(self, text: str) -> int:
        if text not in self._tokens:
            number = self.tokenizer.convert_tokens_to_ids(text)
            if number is None or (
                number == self.tokenizer.unk_token_id and text != self.tokenizer.unk_token
            ):
                raise DataError(
                    f"template {self.template.name!r} needs the token {text!r}, which this "
                    "tokenizer does not have. Choose the template of the model."
                )
            self._tokens[text] = int(number)
        return self._tokens[text]

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                f"template {self.template.name!r} ends answers with EOS, and this tokenizer has "
                "none. Choose the template of the model."
            )
        return int(self.tokenizer.eos_token_id)

    def _join(
        self, conversation: Conversation, turns: Sequence[Turn], ids: dict[Any, Ids]
    ) -> Example:
        """All turns one after the other."""
        sides = [(_side(turn.prompt, ids), _side(turn.answer, ids)) for turn in turns]
        return self._put_together(conversation, sides)

    def _put_together(
        self, conversation: Conversation, turns: Sequence[tuple[Side, Side]], num_cut: int = 0
    ) -> Example:
        """An example of turns that are as long as they shall be; they are the row's first.

        With `efficient_eos` an answer's EOS is the first label of the next prompt, with the
        answer's weight, and one more EOS ends the example. With `mask_history` none of those
        between turns is learned: there, only the last answer is. A message's own weight decides
        about it before both options.
        """
        options, has_eos = self.options, self.template.efficient_eos
        marks = _marks(conversation, len(turns))
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
        if has_eos:
            eos = self._eos()
            input_ids.append(eos)
            is_learned = not marks or marks[-1][1] != 0
            labels.append(eos if is_learned else IGNORE_INDEX)
            weights.append((1, weights[-1][1] if weights else 1.0))
        return Example(input_ids, labels, num_cut, _spread(weights, conversation.weight))

    def _finish(self, conversation: Conversation, example: Example) -> Outcome:
        """The example, if something of it is learned."""
        labels = example.labels
        ends_learned = len(labels) > 1 and labels[-1] != IGNORE_INDEX
        if ends_learned or labels[1:].count(IGNORE_INDEX) < len(labels) - 1:
            return [example]
        if not example.num_cut and any(one.weight == 0 for one in conversation.messages):
            return LeftOut(UNLEARNED, len(labels))
        fix = "Shorten the prompt, or raise cutoff_len."
        found = f" ({example.num_cut:,} tokens were cut)"
        error = RowError("", "no learned token is left", fix, found)
        return RowProblem.of(conversation.origin, error)

    def _framed(
        self, conversations: Sequence[Conversation], render: Any
    ) -> list[tuple[list[tuple[Framed, Framed]], dict[Any, Ids]]]:
        """The turns of each, with what of them is no content, and the ids of every part."""
        framed = [find_frames(one, render) for one in conversations]
        pieces = [piece for turns in framed for turn in turns for side in turn for piece in side]
        frames = [
            piece
            for turns in framed
            for turn in turns
            for side in turn
            for piece in (*side.frame.head, *side.frame.tail)
        ]
        ids = self._tokenise_pieces([*pieces, *frames])
        return [(turns, ids) for turns in framed]

    def _truncate(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Turns put together while there is room, contents cut at their ends."""
        outcomes = []
        for conversation, (turns, ids) in zip(
            conversations, self._framed(conversations, self._turns), strict=True
        ):
            sides = [
                (_Cuttable.of(source, ids), _Cuttable.of(target, ids)) for source, target in turns
            ]
            room, num_all = self._room(), sum(len(s) + len(t) for s, t in sides)
            kept: list[tuple[Side, Side]] = []
            num_kept = 0
            for source, target in reversed(sides) if self.options.mask_history else sides:
                shares = _share_with_frames(source, target, room - num_kept)
                if shares is None:
                    break
                kept.append((source.cut(shares[0]), target.cut(shares[1])))
                num_kept += sum(shares)
            if self.options.mask_history:
                kept.reverse()
            first = len(sides) - len(kept) if self.options.mask_history else 0
            messages = conversation.messages[2 * first :][: 2 * len(kept)]
            example = self._put_together(_with(conversation, messages), kept, num_all - num_kept)
            outcomes.append(self._finish(conversation, example))
        return outcomes

    def _split(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        """Rows of whole turns, as many in each as fit; a turn that fits nowhere is cut.

        Every part begins with the system text and the tools. It begins with a question where one
        is near enough, not with what a tool answered.
        """
        parts: list[list[Example]] = [[] for _ in conversations]
        problems: dict[int, RowProblem] = {}
        waiting = list(enumerate(conversations))
        while waiting:
            rendered = self._render_all([rest for _, rest in waiting])
            ids = self._tokenise(rendered)
            ready: list[tuple[int, Conversation]] = []
            after: list[tuple[int, Conversation]] = []
            for (at, rest), turns in zip(waiting, rendered, strict=True):
                if isinstance(turns, RowProblem):
                    problems[at] = turns
                    continue
                taken = 2 * _count_fitting(
                    rest, [_count(turn, ids) for turn in turns], self._room()
                )
                ready.append((at, _with(rest, rest.messages[:taken])))
                if taken < len(rest.messages):
                    after.append((at, _with(rest, rest.messages[taken:])))
            whole = [part for _, part in ready]
            for (at, _), outcome in zip(ready, self._take_parts(whole), strict=True):
                if isinstance(outcome, list):
                    parts[at] += outcome
                elif isinstance(outcome, RowProblem):
                    problems[at] = outcome
            waiting = after
        for at in problems:
            if parts[at]:  # the rest of the row is used, and this part counts as cut
                parts[at][0] = parts[at][0]._replace(num_cut=parts[at][0].num_cut + 1)
        nothing = LeftOut(UNLEARNED)
        return [found or problems.get(at) or nothing for at, found in enumerate(parts)]

    def _take_parts(self, conversations: Sequence[Conversation]) -> list[Outcome]:
        rendered = self._render_all(conversations)
        ids = self._tokenise(rendered)
        outcomes: list[Outcome] = []
        for conversation, turns in zip(conversations, rendered, strict=True):
            if isinstance(turns, RowProblem):
                outcomes.append(turns)
            elif sum(_count(turn, ids) for turn in turns) <= self._room():
                outcomes.append(self._finish(conversation, self._join(conversation, turns, ids)))
            else:
                outcomes += self._truncate([conversation])
        return outcomes

    def _asked(self, turn: Turn, ids: dict[Any, Ids]) -> tuple[Ids, Ids]:
        source, target = _side(turn.prompt, ids)[0], _side(turn.answer, ids)[0]
        if self.template.efficient_eos:
            target = target + array(TYPECODE, [self._eos()])
        return source, target

    def _shorten_prompt(self, conversation: Conversation, num_all: int) -> Outcome:
        room = self._room()
        rest = conversation
        while True:
            ((turns, ids),) = self._framed([rest], self._last_turn)
            ((framed_source, framed_target),) = turns
            source, target = _Cuttable.of(framed_source, ids), _Cuttable.of(framed_target, ids)
            is_short = len(source) + len(target) <= room
            starts = range(2, len(rest.messages), 2)
            start = next((at for at in starts if rest.messages[at].role == "user"), None)
            if is_short or start is None:
                break
            rest = _with(rest, rest.messages[start:])
        shares = (
            (len(source), len(target)) if is_short else _share_with_frames(source, target, room)
        )
        if shares is None:
            fix = "Raise cutoff_len."
            error = RowError("", "no room for a question", fix, f" ({num_all:,} tokens)")
            return RowProblem.of(conversation.origin, error)
        prompt, answer = source.cut(shares[0])[0], target.cut(shares[1])[0]
        if self.template.efficient_eos:
            answer = answer + array(TYPECODE, [self._eos()])
        return [Example(prompt, answer, num_all - len(prompt) - len(answer))]


Side: TypeAlias = tuple[Ids, Ids]
"""The ids of a prompt or an answer, and the label of each."""


@dataclass(frozen=True, slots=True)
class _Cuttable:
    """A side that can be cut without losing what frames its content.

    Attributes:
        whole: all of it.
        num_head: tokens before the content that is cut.
        tail: what stands behind that content.
    """

    whole: Side
    num_head: int
    tail: Side

    @classmethod
    def of(cls, framed: Framed, ids: dict[Any, Ids]) -> _Cuttable:
        frame: Frame = framed.frame
        return cls(
            _side(framed.pieces, ids),
            sum(len(ids[piece.content]) for piece in frame.head),
            _side(frame.tail, ids),
        )

    def __len__(self) -> int:
        return len(self.whole[0])

    @property
    def least(self) -> int:
        """The fewest tokens it can be cut to: its frame and one of content."""
        return min(len(self), self.num_head + len(self.tail[0]) + 1)

    def cut(self, count: int) -> Side:
        """Its first tokens and its tail, `count` together."""
        if count >= len(self):
            return self.whole
        kept = count - len(self.tail[0])
        return self.whole[0][:kept] + self.tail[0], self.whole[1][:kept] + self.tail[1]


def _share_with_frames(source: _Cuttable, target: _Cuttable, room: int) -> tuple[int, int] | None:
    """`share_room`, with no less for either than its frame; None when there is no room for both."""
    if source.least + target.least > room:
        return None
    num_source, num_target = share_room(len(source), len(target), room)
    if num_source < source.least:
        num_source = source.least
        num_target = min(len(target), room - num_source)
    if num_target < target.least:
        num_target = target.least
        num_source = min(len(source), room - num_target)
    return num_source, num_target


def _count_fitting(conversation: Conversation, lengths: Sequence[int], room: int) -> int:
    """How many turns make the next part: at least one, at most what fits, up to a question."""
    num_fitting, total = 0, 0
    for length in lengths:
        total += length
        if total > room:
            break
        num_fitting += 1
    messages = conversation.messages
    for count in range(num_fitting, 0, -1):
        if 2 * count == len(messages) or messages[2 * count].role == "user":
            return count
    return max(num_fitting, 1)


def _side(pieces: Iterable[Piece], ids: dict[Any, Ids]) -> Side:
    joined, labels = array(TYPECODE), array(TYPECODE)
    for piece in pieces:
        tokens = ids[piece.content]
        joined += tokens
        labels += tokens if piece.is_learned else _ignored(len(tokens))
    return joined, labels


def _ignored(count: int) -> Ids:
    return _IGNORED * count


_IGNORED = array(TYPECODE, [IGNORE_INDEX])


def _count(turn: Turn, ids: dict[Any, Ids]) -> int:
    return sum(len(ids[piece.content]) for side in (turn.prompt, turn.answer) for piece in side)


def _marks(conversation: Conversation, num_turns: int) -> list[tuple[float | None, float | None]]:
    """The weights of question and answer of each turn; nothing when no message has one.

    A template may put the first turns into one, so the turns are the last ones.
    """
    messages: tuple[Message, ...] = conversation.messages
    if all(message.weight is None for message in messages):
        return []
    weights = [message.weight for message in messages]
    return list(zip(weights[::2], weights[1::2], strict=True))[len(messages) // 2 - num_turns :]


def _spread(parts: Sequence[tuple[int, float]], of_row: float | None) -> Any:
    """The weight of each token; None when all that is learned counts once."""
    factor = 1.0 if of_row is None else of_row
    if factor == 1 and all(weight in (0, 1) for _, weight in parts):
        return None
    weights = array("f")
    for count, weight in parts:
        weights += array("f", [weight * factor]) * count
    return weights


def _question(conversation: Conversation) -> Conversation:
    """The conversation up to its last question."""
    return _with(conversation, conversation.messages[:-1])


def _with(conversation: Conversation, messages: Sequence[Message]) -> Conversation:
    return Conversation(
        tuple(messages),
        conversation.system,
        conversation.tools,
        conversation.origin,
        conversation.weight,
    )


def _as_record(conversation: Conversation, outcome: Outcome) -> EncodedOrProblem:
    if isinstance(outcome, list):
        return outcome[0].as_record()
    if isinstance(outcome, RowProblem):
        return outcome
    error = RowError("", outcome.reason, "", f" ({outcome.num_tokens:,} tokens)")
    return RowProblem.of(conversation.origin, error)
