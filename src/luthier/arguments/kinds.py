"""What the sections of arguments are made of: their base, their lists, their mappings."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from luthier.arguments.wording import members


class Section(BaseModel):
    """A group of knobs. Frozen; numbers are taken from text, unknown names are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name is not None:
            kinds = members(cls.model_fields[info.field_name].annotation)
            if bool not in kinds and {int, float} & set(kinds):
                raise ValueError("true and false are no numbers")
        return value


def split_commas(value: Any) -> Any:
    """`"a, b"` -> `("a", "b")`; lists and tuples stay, None is empty."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def read_mapping(value: Any) -> Any:
    """JSON text -> what it says; everything else stays for pydantic to judge."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError as problem:
            raise ValueError(f"not JSON: {problem}") from problem
    return value


CommaList = Annotated[
    tuple[str, ...],
    BeforeValidator(split_commas, json_schema_input_type=str | list[str] | None),
]
"""Names, as `a,b` or as a list; empty when unset."""

FloatList = Annotated[
    tuple[float, ...],
    BeforeValidator(split_commas, json_schema_input_type=str | list[float] | None),
]
"""Numbers, as `0.3,0.7` or as a list; empty when unset."""

Mapping = Annotated[
    dict[str, Any], BeforeValidator(read_mapping, json_schema_input_type=str | dict[str, Any])
]
"""A mapping, or JSON text of one."""


def knob(default: Any, description: str, *, status: str = "honoured", **bounds: Any) -> Any:
    """A field: its default, one full thought for the reader, its status, its bounds."""
    return Field(default, description=description, json_schema_extra={"status": status}, **bounds)
