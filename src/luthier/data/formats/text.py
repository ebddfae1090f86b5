"""one column of raw text a row, for stages that learn texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.catalog import Columns, DatasetDescription
from luthier.data.check import RowError
from luthier.data.formats.fields import as_text
from luthier.errors import DataError
from luthier.records import Origin, Text

_COLUMNS = ("text", "content")


def find_text_column(description: DatasetDescription, rows: Sequence[Any]) -> str:
    """The column that holds the text: the one mapped as `prompt`, else `text` or `content`.

    Raises:
        DataError: if no column is mapped, and none is called so.
    """
    mapped = description.columns.prompt
    if description.formatting is not None and mapped not in (None, Columns().prompt):
        assert mapped is not None
        return mapped
    keys = list(dict.fromkeys(str(key) for row in rows if isinstance(row, Mapping) for key in row))
    found = next((name for name in _COLUMNS if name in keys), None)
    if found is None:
        listed = ", ".join(keys[:12]) or "no objects at all"
        raise DataError(
            f"data set {description.name!r}: stage pt learns the text of one column, and none is "
            f"called {' or '.join(_COLUMNS)}. Columns here: {listed}. Name it in "
            'dataset_info.json: "columns": {"prompt": "NAME"}; for conversations use stage: sft.'
        )
    return found


def detect_text(
    description: DatasetDescription, rows: Sequence[Any]
) -> tuple[DatasetDescription, str]:
    """The description of texts that the rows tell, and the line that says so."""
    column = find_text_column(description, rows)
    columns = replace(description.columns, prompt=column)
    told = f"texts from {column!r}"
    if description.sample_by == "line" and description.location.lower().endswith(".txt"):
        told = "each line is a text of its own (sample_by: line)"
    return replace(description, formatting="text", columns=columns), told


def for_texts(columns: Iterable[str]) -> str:
    """What is said where conversations are looked for among columns that hold texts."""
    return " For plain texts set stage: pt." if {*_COLUMNS} & {*columns} else ""


def read_text(row: Mapping[str, Any], column: str, origin: Origin | None) -> Text:
    """The text as it stands, which may be empty."""
    if row.get(column) is None:
        shown = ", ".join(map(repr, list(row)[:8])) or "none"
        raise RowError(
            column,
            "null" if column in row else "missing",
            'Write the text there, or name its column as "prompt" in "columns".',
            f" (there are: {shown})",
        )
    return Text(as_text(row[column], column), origin)
