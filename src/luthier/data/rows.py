"""what stands on one line of a data file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from luthier.data.check import RowProblem
from luthier.records import Origin


@dataclass(frozen=True, slots=True)
class Row:
    """What stands on one line of a file, of whatever type."""

    values: Any
    origin: Origin


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table as its objects were before.

    In a table all objects of a column have the same keys: those that only other rows' objects
    have are null, on every level but the first.
    """
    return {key: _known(value) for key, value in values.items()}


def _known(value: Any) -> Any:
    if isinstance(value, list):
        return [_known(one) for one in value]
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items() if one is not None}
    return value


RowOrProblem: TypeAlias = Row | RowProblem
