"""The template of a run, with the run's options."""

from __future__ import annotations

import dataclasses

from luthier.records import Special
from luthier.templates.slots import CONTENT
from luthier.templates.template import Template
from luthier.templates.tool_format import TOOL_FORMATS


def with_tool_format(template: Template, name: str) -> Template:
    """`template` with another tool format; calls then stand in a plain answer's slots.

    Raises:
        UnknownName: if there is no such format.
    """
    TOOL_FORMATS.get(name)
    plain = (CONTENT,) if template.efficient_eos else (CONTENT, Special.EOS)
    return dataclasses.replace(template, tool_format=name, function=plain)
