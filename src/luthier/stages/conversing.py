"""What stages that read conversations have in common: an encoder, and how tools are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.arguments.record import facts
from luthier.data.catalog import DatasetDescription, ToolTurns
from luthier.data.encode import Encoder
from luthier.data.formats.detect import detect_format
from luthier.errors import TemplateError
from luthier.records import Conversation, Message
from luthier.stages.stage import Stage
from luthier.templates.chat_template import Renders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Conversing(Stage):
    """Reads conversations by a template, which is there once the stage is fitted."""

    encoder: Encoder
    finds: Callable[..., tuple[DatasetDescription, str]] = staticmethod(detect_format)
    """(description, first rows) -> what `detect` gives of a data set that is not described."""

    def fit(self, tokenizer: PreTrainedTokenizerBase, template: Renders | None) -> None:
        assert template is not None
        super().fit(tokenizer, template)
        self.encoder = Encoder(tokenizer, template, self.options)
        self.tool_turns = find_tool_turns(template)
        of_turns = [name for name, each in facts().items() if each.of_turns]
        idle = [name for name in of_turns if getattr(self.data, name)]
        if self.judges and idle:
            console.info(f"whole answers are learned from: {', '.join(idle)} have no effect")

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any], *, needs_answer: bool = True
    ) -> tuple[DatasetDescription, str]:
        if description.formatting is not None or not rows:
            return description, ""
        if not needs_answer and not self.judges:
            return detect_format(description, rows, needs_answer=False)
        return self.finds(description, rows)

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"tool_turns": asdict(self.tool_turns)}


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
