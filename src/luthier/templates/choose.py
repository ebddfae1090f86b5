"""The template of a run, with the run's options."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from luthier import console
from luthier.errors import TemplateError
from luthier.records import Special
from luthier.templates.chat_template import ChatTemplate, Tokenizer
from luthier.templates.registry import TEMPLATES
from luthier.templates.slots import CONTENT, Slots
from luthier.templates.template import Template
from luthier.templates.tool_format import TOOL_FORMATS


class TemplateOptions(Protocol):
    """The data arguments that say which template and how."""

    @property
    def template(self) -> str | None:
        """Its name; None for the tokenizer's own chat template."""

    @property
    def tool_format(self) -> str | None:
        """Another tool format than the template's."""

    @property
    def default_system(self) -> str | None:
        """Another system text than the template's, for conversations that have none."""

    @property
    def enable_thinking(self) -> bool | None:
        """See `luthier.templates.thinking`."""

    @property
    def preserve_thinking(self) -> bool:
        """See `luthier.templates.thinking`."""

    @property
    def train_on_prompt(self) -> bool:
        """Whether prompts are learned too."""


def choose_template(data_args: TemplateOptions, tokenizer: Tokenizer) -> Template | ChatTemplate:
    """The template that the arguments name, or the tokenizer's own chat template.

    Without a name and without a chat template on the tokenizer, `empty` is taken, and a line says
    so. Options make a changed copy; the registered template stays as it is.

    Raises:
        UnknownName: if no template or tool format has this name.
        TemplateError: if the template does not allow an option.
    """
    if data_args.template is None and tokenizer.chat_template:
        console.info("template: the tokenizer's own chat template (none is named)")
        return _read_from(tokenizer, data_args)
    if data_args.template is None:
        console.warn(
            "no template is named and the tokenizer has no chat template: `empty` is taken, which "
            "writes questions and answers one after the other. Name one with template: NAME."
        )
    template = find_template(data_args.template or "empty")
    if data_args.train_on_prompt and template.efficient_eos:
        raise TemplateError(
            f"train_on_prompt does not go with template {template.name!r}, whose answers are ended "
            "by the label before the next question.\n  Leave train_on_prompt out."
        )
    if data_args.tool_format is not None:
        template = with_tool_format(template, data_args.tool_format)
    changes: dict[str, Any] = {}
    if data_args.default_system is not None:
        changes["default_system"] = data_args.default_system
    if template.is_reasoning:
        changes["enable_thinking"] = data_args.enable_thinking
        changes["preserve_thinking"] = data_args.preserve_thinking
    return dataclasses.replace(template, **changes)


def find_template(name: str) -> Template:
    """The registered template of this name, under which several may stand.

    Raises:
        UnknownName: with the nearest names.
    """
    return dataclasses.replace(TEMPLATES.get(name), name=name)


def with_tool_format(template: Template, name: str) -> Template:
    """`template` with another tool format; calls then stand in a plain answer's slots.

    Raises:
        UnknownName: if there is no such format.
    """
    TOOL_FORMATS.get(name)
    plain: Slots = (CONTENT,) if template.efficient_eos else (CONTENT, Special.EOS)
    return dataclasses.replace(template, tool_format=name, function=plain)


def _read_from(tokenizer: Tokenizer, data_args: TemplateOptions) -> ChatTemplate:
    if data_args.tool_format is not None:
        raise TemplateError(
            "tool_format needs a named template: the tokenizer's own chat template writes tools in "
            "its own way.\n  Set template too, or leave tool_format out."
        )
    return ChatTemplate(
        tokenizer,
        default_system=data_args.default_system or "",
        enable_thinking=data_args.enable_thinking,
        preserve_thinking=data_args.preserve_thinking,
    )
