"""the values of a row, each of the type that is expected."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from luthier.data.catalog import DatasetDescription
from luthier.data.check import NOT_UTF8, SAVE_AS_UTF8, RowError
from luthier.errors import TemplateError
from luthier.templates.tool_format import check_tools

if TYPE_CHECKING:
    from luthier.data.catalog import Reading

_MISSING = object()


def text_at(row: Mapping[str, Any], column: str, field: str, fix: str) -> str:
    """A text that has to be there and to say something; messages say `field` and `fix`.

    Raises:
        RowError: if it is missing, null, no text, empty or not UTF-8.
    """
    value = row.get(column, _MISSING)
    if value is _MISSING:
        raise RowError(field, "missing", fix, f" (there are: {_keys(row)})")
    if value is None:
        raise RowError(field, "null", fix)
    text = as_text(value, field)
    if not text or text.isspace():
        raise RowError(field, "empty", fix)
    return text


def optional_text(row: Mapping[str, Any], column: str | None) -> str:
    """A text that may be missing or null, which reads as empty."""
    if column is None or row.get(column) is None:
        return ""
    return as_text(row[column], column)


def as_text(value: Any, field: str) -> str:
    """`value`, if it is a text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise RowError(field, f"{kind_of(value)} where a text belongs", "Write it as a text.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f" (character {error.start + 1})"
            if "\udc80" <= value[error.start] <= "\udcff":  # a byte that `surrogateescape` kept
                reason, fix = NOT_UTF8, SAVE_AS_UTF8
            else:
                reason = "half of a surrogate pair"
                fix = "Write both halves (\\ud83d\\ude00), or the character itself."
            raise RowError(field, reason, fix, found) from error
    return value


def as_object(value: Any, field: str) -> Mapping[str, Any]:
    """`value`, if it is an object; JSON text of one is read."""
    value = _parse(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise RowError(field, f"{kind_of(value)} where an object belongs", "Write it as {...}.")
    return value


def as_list(value: Any, field: str) -> list[Any]:
    """`value`, if it is a list; JSON text of one (a cell of a CSV) is read."""
    value = _parse(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise RowError(field, f"{kind_of(value)} where a list belongs", "Write it as [...].")
    return value


def weight_of_message(message: Mapping[str, Any], field: str) -> float | None:
    """How much a message counts, from its keys `train`, `loss` and `weight`; None without any.

    Raises:
        RowError: if `train` is not true or false, `loss` neither that nor a number from 0 on, or
            `weight` no such number.
    """
    train, loss, weight = message.get("train"), message.get("loss"), message.get("weight")
    if train is None and loss is None and weight is None:
        return None
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{field}.train", f"{kind_of(train)} where true or false belongs", _TRAIN)
    if loss is not None and not isinstance(loss, bool) and not _is_weight(loss):
        raise RowError(f"{field}.loss", f"{kind_of(loss)} where true or false belongs", _TRAIN)
    if weight is not None and not _is_weight(weight):
        raise RowError(f"{field}.weight", "no number from 0 on", _WEIGHT)
    if train is False:
        return 0.0
    return math.prod(float(1 if factor is None else factor) for factor in (loss, weight))


def weight_of_row(row: Mapping[str, Any], reading: Reading) -> float | None:
    """How much a row counts, from the columns named as `train` and `weight`; None without.

    Columns of these names that nobody named are not read. Where they look like it, that is counted
    as a remark.

    Raises:
        RowError: if a named one holds something else.
    """
    found: dict[str, Any] = {}
    for name, find in (("train", _find_train), ("weight", _find_weight)):
        column = getattr(reading.description.columns, name)
        value = row.get(column) if column else None
        found[name] = find(value)
        if column is None and find(row.get(name)) is not None:
            reading.remarks[
                f'column {name!r} is not read; "columns": {{"{name}": "{name}"}} makes rows count '
                "by it"
            ] += 1
        if value not in (None, "") and found[name] is None and name == "train":
            raise RowError(column, f"{kind_of(value)} where true or false belongs", _TRAIN)
        if value not in (None, "") and found[name] is None:
            raise RowError(column, "no number from 0 on", _WEIGHT)
    return 0.0 if found["train"] is False else found["weight"]


def _find_train(value: Any) -> bool | None:
    """True or false, also as a cell of a CSV writes it."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _find_weight(value: Any) -> float | None:
    """A number from 0 on, also as a cell of a CSV writes it."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else None
    return float(value) if _is_weight(value) else None


def _is_weight(value: Any) -> TypeGuard[int | float]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf


_NUMBER = re.compile(r"\d+(\.\d+)?")
_TRAIN = "Write true to learn it, false to mask it."
_WEIGHT = "Write 0 to mask it, 1 to learn it."


def tools_of(row: Mapping[str, Any], description: DatasetDescription) -> str | None:
    """The tool descriptions as the text of a JSON list; None when there are none."""
    column = description.columns.tools
    if column is None or row.get(column) is None:
        return None
    value = given = row[column]
    if isinstance(value, str):
        value = _parse(as_text(value, column)) if value.strip() else None
        if value is None:
            return None
    if isinstance(value, Mapping):
        value = given = [value]
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError(
            column, "no JSON list of tools", "Write a list of objects with name and parameters."
        )
    try:
        check_tools(value)
    except TemplateError as error:
        found, _, fix = str(error).partition("\n")
        raise RowError(column, "a tool of a wrong shape", fix.strip(), f": {found}") from error
    return as_text(given if isinstance(given, str) else dump(given, column), column)


def refuse_media(row: Mapping[str, Any], description: DatasetDescription) -> None:
    """Refuses a row whose text speaks of images, videos or sounds that stand beside it."""
    for kind in ("images", "videos", "audios"):
        column = getattr(description.columns, kind)
        if column is not None and row.get(column) not in (None, "", "[]", []):
            raise RowError(
                column,
                f"{kind} beside the text, and only text is read",
                f'Take the row away, or "{kind}" from "columns" of {description.name!r} to learn '
                "from the text alone.",
            )


def dump(value: Any, field: str) -> str:
    """`value` as JSON text, or a RowError if JSON cannot say it (a date of a parquet file)."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(field, "not to be written as JSON", "Use texts and numbers.") from error


def kind_of(value: Any) -> str:
    """The type of a JSON value in words."""
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    names |= {dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _parse(text: str) -> Any:
    """The value of JSON text; the text itself when it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _keys(row: Mapping[str, Any]) -> str:
    shown = ", ".join(repr(key)[:40] for key in list(row)[:8])
    return shown or "none"
