"""what stands on one line of a data file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from luthier.data.check import RowProblem
from luthier.records import Origin


@dataclass(frozen=True, slots=True)
class Row:
    """What stands on one line of a file, of whatever type."""

    values: Any
    origin: Origin


RowOrProblem: TypeAlias = Row | RowProblem
