"""What a field takes and why a value does not fit, in words."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from luthier.errors import suggest

NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    SecretStr: "text",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
    Path: "a path",
    NoneType: "null",
}


def members(annotation: Any) -> tuple[Any, ...]:
    """The types a union joins, unwrapped from what pydantic notes beside them."""
    if typing.get_origin(annotation) is typing.Annotated:
        return members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, UnionType):
        return tuple(part for each in typing.get_args(annotation) for part in members(each))
    return (annotation,)


def bare(annotation: Any) -> Any:
    """`list[str]` -> `list`; types without parameters stay."""
    origin = typing.get_origin(annotation)
    return annotation if origin is None or origin is Literal else origin


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values that a `Literal` allows, in a list of them too; empty for other types."""
    for part in members(annotation):
        if typing.get_origin(part) is Literal:
            return typing.get_args(part)
        if typing.get_origin(part) is tuple and (inner := choices(typing.get_args(part)[0])):
            return inner
    return ()


@cache
def describe(annotation: Any) -> str:
    """What a type takes, in words."""
    parts = [part for part in members(annotation) if part is not NoneType]
    if any(part is Any for part in parts):
        return "any value"
    words = [_one(part) for part in parts]
    return " or ".join(dict.fromkeys(words)) or "null"


def _one(part: Any) -> str:
    if typing.get_origin(part) is Literal:
        values = [str(value) for value in typing.get_args(part)]
        return "one of " + ", ".join(values) if len(values) > 1 else values[0]
    if typing.get_origin(part) is tuple:
        inner = typing.get_args(part)[0]
        if typing.get_origin(inner) is Literal:
            return "a comma list of " + ", ".join(map(str, typing.get_args(inner)))
        return "a comma list of numbers" if inner is float else "a comma list"
    return NAMES.get(bare(part), "a value")


def expectation(field: FieldInfo) -> str:
    """What a field takes, with its bounds: `a whole number of at least 1`."""
    bounds = [text for each in field.metadata for text in _bounds(each)]
    return " ".join(
        [describe(typing.cast(Any, field.annotation)), *([" and ".join(bounds)] if bounds else [])]
    )


def _bounds(constraint: Any) -> Iterable[str]:
    match constraint:
        case annotated_types.Ge(ge):
            yield f"of at least {ge}"
        case annotated_types.Gt(gt):
            yield f"above {gt}"
        case annotated_types.Le(le):
            yield f"of at most {le}"
        case annotated_types.Lt(lt):
            yield f"below {lt}"
        case _:
            pass


def is_secret(annotation: Any) -> bool:
    """Whether values of this type must not be shown."""
    return SecretStr in members(annotation)


def misfit(origin: str, name: str, annotation: Any, expected: str, error: ErrorDetails) -> str:
    """The sentence for a value that does not fit: where, what was found, what was expected."""
    found = error["input"]
    shown = "a value" if is_secret(annotation) else repr(found)
    sentence = f"{origin}: {name} is {shown}; expected {expected}."
    if error["type"] == "value_error":
        return f"{sentence[:-1]} ({error['ctx']['error']})."
    allowed = choices(annotation)
    if allowed and isinstance(found, str):
        hint = suggest(found, map(str, allowed))
        return sentence if hint.startswith(" Known:") else sentence + hint
    return sentence
