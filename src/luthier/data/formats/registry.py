"""the formattings by name, and what a reader of rows is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from luthier.data.catalog import DatasetDescription
from luthier.records import Conversation, Origin
from luthier.registry import Registry


@dataclass(frozen=True)
class ToolTurns:
    """How a template writes the turns in which tools are called and answer.

    Attributes:
        separator: what stands between the contents of tool messages that follow each other.
        takes_text: whether text beside calls can be told from them.
    """

    separator: str = "\n"
    takes_text: bool = True


@dataclass(frozen=True)
class Reading:
    """How the rows of one data set are read.

    Attributes:
        description: columns and tags.
        needs_answer: whether a row without an answer is wrong (learning) or ends with an empty
            one (generation only).
        tool_turns: how calls and what tools answered are written.
        remarks: counted by readers: what a row had that is not learned from.
    """

    description: DatasetDescription
    needs_answer: bool = True
    tool_turns: ToolTurns = ToolTurns()
    remarks: Counter[str] = field(default_factory=Counter)


Format: TypeAlias = Callable[[Mapping[str, Any], Reading, Origin | None], Conversation]
"""Reads one row; raises RowError with field, reason and fix."""

FORMATS: Registry[Format] = Registry("formatting", "luthier.data.formats")
