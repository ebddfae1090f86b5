"""what a stage reads -> how rows of it are read, encoded and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from luthier.data.blocks import BlockOptions
from luthier.data.catalog import DatasetDescription
from luthier.data.encode import Encoder, EncodingOptions
from luthier.data.formats.detect import detect_format
from luthier.data.formats.registry import Reading, ToolTurns
from luthier.data.formats.text import detect_text
from luthier.data.packing import DocumentPacker, Packer, RowPacker
from luthier.data.table import Makes, Purpose, Work
from luthier.data.texts import TextEncoder, TextWork, find_bos
from luthier.errors import TemplateError
from luthier.records import Conversation, Message, Record, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.arguments.record import Arguments
    from luthier.templates.chat_template import Renders


class Route(Protocol):
    """The way of one kind of record from rows to examples."""

    keeps_order: bool
    """Whether the rows of a split stay in the order of the data: they are read together."""

    def encoding(self) -> dict[str, Any]:
        """What decides about the encoded rows beside the tokenizer."""

    def ingredients(self) -> dict[str, Any]:
        """What decides about the examples, in the words of the configuration."""

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any]
    ) -> tuple[DatasetDescription, str]:
        """The description with what the first rows tell, and a line that says it."""

    def work(
        self, description: DatasetDescription, purpose: Purpose, *, allow_prompts: bool
    ) -> Makes:
        """How shards of encoded rows are made."""

    def packer(self, *, is_trained: bool) -> Packer | None:
        """How encoded rows are packed; None where each is an example."""


def choose_route(
    arguments: Arguments,
    template: Renders | None,
    tokenizer: PreTrainedTokenizerBase,
    reads: type[Record],
) -> Route:
    """The route of the record that a stage reads.

    Args:
        arguments: how rows are encoded and packed.
        template: renders conversations; None for texts.
        tokenizer: fitted to the template.
        reads: `Conversation` or `Text`.
    """
    if reads is Text:
        return TextRoute(arguments, tokenizer)
    assert reads is Conversation, reads
    assert template is not None
    return ConversationRoute(arguments, template, tokenizer)


class ConversationRoute:
    """Rows are conversations; with `packing` several of them share an example."""

    keeps_order = False

    def __init__(
        self, arguments: Arguments, template: Renders, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.data = arguments.data
        self.encoder = Encoder(tokenizer, template, EncodingOptions.of(arguments))
        self.tool_turns = find_tool_turns(template)

    def encoding(self) -> dict[str, Any]:
        """The template and what is learned of conversations."""
        return {
            "template": self.encoder.template.fingerprint(),
            "tool_turns": asdict(self.tool_turns),
            **asdict(self.encoder.options),
        }

    def ingredients(self) -> dict[str, Any]:
        """The same, and whether rows are packed."""
        options = asdict(self.encoder.options) | {"packing": bool(self.data.packing)}
        switches = ("packing", "split_special_tokens")  # left out where they are off
        said = {name: value for name, value in options.items() if value or name not in switches}
        return {"template": self.encoder.template.fingerprint(), **said}

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any]
    ) -> tuple[DatasetDescription, str]:
        """The formatting, where none is described."""
        if description.formatting is not None or not rows:
            return description, ""
        return detect_format(description, rows)

    def work(
        self, description: DatasetDescription, purpose: Purpose, *, allow_prompts: bool
    ) -> Work:
        """Encodes conversations."""
        reading = Reading(description, not allow_prompts, self.tool_turns)
        return Work(self.encoder, reading, purpose, self.data.preprocessing_batch_size)

    def packer(self, *, is_trained: bool) -> RowPacker | None:
        """Only what is trained on is packed: a mean over tokens is the same without."""
        if not (self.data.packing and is_trained):
            return None
        return RowPacker(self.data.cutoff_len)


class TextRoute:
    """Rows are documents, which are cut into blocks."""

    keeps_order = True

    def __init__(self, arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> None:
        data_args = self.data = arguments.data
        splits = arguments.model.split_special_tokens
        self.encoder = TextEncoder(tokenizer, splits_special=splits)
        self.options = BlockOptions(
            data_args.cutoff_len,
            is_packed=data_args.packing is not False,
            is_isolated=data_args.neat_packing is not False,
            overlap=data_args.document_overlap,
            bos=find_bos(tokenizer),
        )

    def encoding(self) -> dict[str, Any]:
        """EOS and special tokens: a document is whole, however long."""
        split = {"split_special_tokens": True} if self.encoder.splits_special else {}
        return {"stage": "pt", "eos": self.encoder.tokenizer.eos_token_id, **split}

    def ingredients(self) -> dict[str, Any]:
        """How documents become blocks."""
        return {
            "stage": "pt",
            "cutoff_len": self.options.cutoff_len,
            "packing": self.options.is_packed,
            "neat_packing": self.options.is_isolated,
            "document_overlap": self.options.overlap,
            **({"split_special_tokens": True} if self.encoder.splits_special else {}),
        }

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any]
    ) -> tuple[DatasetDescription, str]:
        """The column of the text."""
        if not rows:
            return description, ""
        return detect_text(description, rows)

    def work(
        self, description: DatasetDescription, purpose: Purpose, *, allow_prompts: bool
    ) -> TextWork:
        """Tokenises documents."""
        column = description.columns.prompt or "text"
        return TextWork(self.encoder, column, self.data.preprocessing_batch_size)

    def packer(self, *, is_trained: bool) -> DocumentPacker:
        """Cuts documents, trained on or not: a whole one may be of any length."""
        return DocumentPacker(self.options)


def find_tool_turns(template: Renders) -> ToolTurns:
    """How a template writes calls and what tools answered.

    Templates that wrap an observation in `<tool_response>` get each content wrapped on its own;
    for others the contents stand on lines of their own, as they do for a template that refuses to
    show them.
    """
    probe = Conversation(
        (
            Message("user", "question"),
            Message("function", '{"name": "find", "arguments": {}}'),
            Message("observation", "found"),
        )
    )
    try:
        texts = [piece.content for piece in template.prompt(probe)]
    except TemplateError:
        texts = []
    is_wrapped = any(isinstance(text, str) and "<tool_response>\nfound" in text for text in texts)
    separator = "\n</tool_response>\n<tool_response>\n" if is_wrapped else "\n"
    return ToolTurns(separator, template.takes_text_beside_calls)
