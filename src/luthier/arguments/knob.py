"""A knob, with what it knows of itself; the sections that knobs stand in, lists, mappings.

What a knob means stands under it, a full thought with its unit and what the default does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping as ReadOnly
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from luthier.arguments.wording import members

Resume: TypeAlias = Literal[
    "learned", "fixed", "free", "elsewhere", "path", "length", "schedule", "groups", "best", "half"
]
"""What a knob may be in a run that goes on from a checkpoint of another value:

- learned: it changes what is learned; refused, unless `resume_allow_changes`.
- fixed: which weights learn, how they began, what the optimizer keeps of each. Refused.
- free: where files lie, what is logged, saved and evaluated, how work is cut and moved. The model
  that comes out is the same but for the rounding of sums.
- elsewhere: it says only a part of what counts, and the thing itself is compared: data by the
  fingerprint of the encoded examples, the batch by the examples of a step.
- path: learned, compared by its last name, as folders move.
- length: how long the run goes. A schedule that looks at the end is drawn anew, which is said.
- schedule: learned; fixed where the schedule's own state holds it.
- groups: learned; fixed where only one of the two runs has it, as it makes groups of weights.
- best: free; fixed where both runs have it, as the best number so far is of the other.
- half: learned; fixed under DeepSpeed, whose states have the dtype.
"""


@dataclass(frozen=True)
class Facts:
    """What a knob knows of itself, beside its type, default, meaning and bounds."""

    status: str = "honoured"  # how the name is treated, as the reference says it
    resume: Resume = "learned"  # what it may become where a run goes on
    is_ours: bool = False
    """Of the section `training`, whether transformers' `TrainingArguments` does not get it under
    its name, because it has none or means something else by it."""
    in_peft: str = ""  # its name in the configuration of peft's adapters
    in_deepspeed: str = ""
    """Where a configuration of DeepSpeed says the same, as `optimizer.params.lr`; several places
    are parted by spaces."""
    half: str = ""  # the dtype that it asks for, where it is about half precision
    methods: tuple[str, ...] = ()
    """The values of `finetuning_type` that it is about; empty where it is about all."""
    stages: tuple[str, ...] = ()  # that it is about; empty where it is about all
    of_turns: bool = False  # whether it has no effect where a stage judges whole answers
    is_strict: bool = False
    """Whether it is refused with another method, where others are told to be idle."""
    needs: ReadOnly[str, str] | tuple[str, ...] = ()
    """Packages that must be there where it is set; a mapping says which for which value."""
    generates: bool = False  # whether answers are generated where it is set, by whole weights
    on_card: bool = False  # whether the model card shows it
    draws: bool = False  # whether it says which rows of the data sets that are named are taken
    reads: bool = False  # whether its value may be a file or folder that a run reads
    variable: str = ""  # by which the environment tells its value to another library

    def needed(self, name: str, value: Any) -> list[tuple[str, str]]:
        """What a value of the knob `name` needs, each with the words that ask for it."""
        if isinstance(self.needs, tuple):
            return [(name, package) for package in self.needs if value]
        chosen = value if isinstance(value, tuple) else (value,)
        return [(f"{name}: {each}", self.needs[each]) for each in chosen if self.needs.get(each)]


FACTS = tuple(each.name for each in fields(Facts))


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


Above = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Below = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]


def knob(default: Any, **said: Any) -> Any:
    """A field: its default, some of `Facts` by their names, and bounds as pydantic takes them."""
    facts = {name: said.pop(name) for name in FACTS if name in said}
    return Field(default, json_schema_extra={"status": "honoured"} | facts, **said)


def free(default: Any, **said: Any) -> Any:
    """A knob that a run which goes on may turn as it likes, see `Resume`."""
    return knob(default, resume="free", **said)


def ours(default: Any, **said: Any) -> Any:
    """A knob that transformers' `TrainingArguments` do not get; mostly a free one."""
    return knob(default, **({"resume": "free", "is_ours": True} | said))
