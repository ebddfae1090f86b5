"""conversations -> token ids and labels, as long as there is room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.data.check import RowError, RowProblem
from luthier.errors import DataError, TemplateError
from luthier.records import IGNORE_INDEX, Conversation, Encoded, Piece, Special, Token, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.data import DataArguments
    from luthier.templates.template import Renders


@dataclass(frozen=True)
class EncodingOptions:
    """What of a conversation is learned, and how long it may be.

    Attributes:
        cutoff_len: the most tokens of an example.
        mask_history: only the last answer is learned, and the last turns have room first.
        train_on_prompt: prompts are learned as well.
    """

    cutoff_len: int
    mask_history: bool = False
    train_on_prompt: bool = False

    @classmethod
    def of(cls, data_args: DataArguments) -> EncodingOptions:
        """Those of a configuration."""
        return cls(data_args.cutoff_len, data_args.mask_history, data_args.train_on_prompt)


EncodedOrProblem: TypeAlias = Encoded | RowProblem


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
        The numbers kept, from the left of each.
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
        self._tokens: dict[str, int] = {}

    def encode(self, conversations: Sequence[Conversation]) -> list[EncodedOrProblem]:
        """Examples to learn from, in order; a row with nothing learned is a problem."""
        masked = self.options.mask_history
        rendered = [
            self._render(one, lambda one: self.template.turns(one, is_history_masked=masked))
            for one in conversations
        ]
        ids = self._tokenise(rendered)
        results: list[EncodedOrProblem] = []
        for conversation, turns in zip(conversations, rendered, strict=True):
            if isinstance(turns, RowProblem):
                results.append(turns)
                continue
            example = self._learn([_Side.of(turn, ids) for turn in turns])
            if count_learned(example):
                results.append(example)
            else:
                fix = "Shorten the prompt, or raise cutoff_len."
                found = f" ({example.num_cut:,} tokens were cut)"
                error = RowError("", "no learned token is left", fix, found)
                results.append(RowProblem.of(conversation.origin, error))
        return results

    def encode_prompts(self, conversations: Sequence[Conversation]) -> list[EncodedOrProblem]:
        """Prompts to answer, each with the ids of the answer that the row holds."""
        rendered = [
            self._render(one, lambda one: [self.template.turn(_asked(one), one.messages[-1])])
            for one in conversations
        ]
        ids = self._tokenise(rendered)
        results: list[EncodedOrProblem] = []
        for turns in rendered:
            if isinstance(turns, RowProblem):
                results.append(turns)
                continue
            source, target = _Side.of(turns[0], ids)
            if self.template.efficient_eos:
                target.ids.append(self._eos())
            num_source, num_target = share_room(
                len(source.ids), len(target.ids), self.options.cutoff_len
            )
            num_cut = len(source.ids) + len(target.ids) - num_source - num_target
            results.append(Encoded(source.ids[:num_source], target.ids[:num_target], num_cut))
        return results

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

    def _tokenise(self, rendered: Iterable[list[Turn] | RowProblem]) -> dict[Any, list[int]]:
        """The ids of every content, each text tokenised once."""
        contents = dict.fromkeys(
            piece.content
            for turns in rendered
            if not isinstance(turns, RowProblem)
            for turn in turns
            for side in (turn.prompt, turn.answer)
            for piece in side
        )
        texts = [content for content in contents if isinstance(content, str) and content]
        ids: dict[Any, list[int]] = {"": []}
        if texts:
            encoded = self.tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                padding=False,
                truncation=False,
                verbose=False,
            )
            ids |= zip(texts, encoded["input_ids"], strict=True)
        for content in contents:
            if isinstance(content, Special):
                named = (
                    self.tokenizer.bos_token_id
                    if content is Special.BOS
                    else self.tokenizer.eos_token_id
                )
                ids[content] = [] if named is None else [named]
            elif isinstance(content, Token):
                ids[content] = [self._token(content.text)]
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

    def _learn(self, turns: list[tuple[_Side, _Side]]) -> Encoded:
        """Turns put together while there is room, each cut on the right.

        With `efficient_eos` an answer's EOS is the first label of the next prompt, and one more
        EOS ends the example. With `mask_history` none of those between turns is learned: there,
        only the last answer is.
        """
        options, has_eos = self.options, self.template.efficient_eos
        num_all = sum(len(source.ids) + len(target.ids) for source, target in turns)
        num_kept, room = 0, options.cutoff_len - int(has_eos)
        kept: list[tuple[list[int], list[int]]] = []
        for source, target in reversed(turns) if options.mask_history else turns:
            if num_kept >= room:
                break
            num_source, num_target = share_room(len(source.ids), len(target.ids), room - num_kept)
            num_kept += num_source + num_target
            source_ids, source_labels = source.ids[:num_source], source.labels[:num_source]
            if options.train_on_prompt:
                source_labels = source_ids
            elif has_eos and kept and num_source and not options.mask_history:
                source_labels = [self._eos(), *source_labels[1:]]
            kept.append(
                (source_ids + target.ids[:num_target], source_labels + target.labels[:num_target])
            )
        if options.mask_history:
            kept.reverse()
        input_ids = [token for ids, _ in kept for token in ids]
        labels = [label for _, marks in kept for label in marks]
        if has_eos:
            input_ids.append(self._eos())
            labels.append(self._eos())
        return Encoded(input_ids, labels, num_all - num_kept)


@dataclass(frozen=True, slots=True)
class _Side:
    """A prompt or an answer as ids, with the label of each."""

    ids: list[int]
    labels: list[int]

    @classmethod
    def of(cls, turn: Turn, ids: dict[Any, list[int]]) -> tuple[_Side, _Side]:
        return cls._join(turn.prompt, ids), cls._join(turn.answer, ids)

    @classmethod
    def _join(cls, pieces: Iterable[Piece], ids: dict[Any, list[int]]) -> _Side:
        joined, labels = [], []
        for piece in pieces:
            tokens = ids[piece.content]
            joined += tokens
            labels += tokens if piece.is_learned else [IGNORE_INDEX] * len(tokens)
        return cls(joined, labels)


def _asked(conversation: Conversation) -> Conversation:
    """The conversation up to its last question."""
    return Conversation(
        conversation.messages[:-1], conversation.system, conversation.tools, conversation.origin
    )
