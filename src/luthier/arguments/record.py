"""All arguments of a run, checked, with where each came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from luthier.arguments.data import DataArguments
from luthier.arguments.finetuning import FinetuningArguments
from luthier.arguments.generating import GeneratingArguments
from luthier.arguments.knob import Facts, Section, facts_of
from luthier.arguments.model import ModelArguments
from luthier.arguments.training import TrainingArguments
from luthier.secrecy import MASK, masked, names_a_secret

SECTIONS: dict[str, type[Section]] = {
    "model": ModelArguments,
    "data": DataArguments,
    "finetuning": FinetuningArguments,
    "training": TrainingArguments,
    "generating": GeneratingArguments,
}


@cache
def fields() -> dict[str, FieldInfo]:
    """Every field by its flat name."""
    return {
        name: each for section in SECTIONS.values() for name, each in section.model_fields.items()
    }


@cache
def facts() -> dict[str, Facts]:
    """What every knob knows of itself, by its flat name."""
    return {name: facts_of(each) for name, each in fields().items()}


@dataclass(frozen=True)
class Arguments:
    """What a configuration says.

    Attributes:
        passed_through: names that only the installed transformers knows, for its own
            `TrainingArguments`.
        origins: name -> where it was given: `config.yaml:12`, `command line`, `dict`,
            `train.args`. Names that nobody gave are absent.
        notes: what was renamed, ignored or inferred, one line each.
    """

    model: ModelArguments
    data: DataArguments
    finetuning: FinetuningArguments
    training: TrainingArguments
    generating: GeneratingArguments
    passed_through: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def given(self, name: str) -> bool:
        """Whether somebody set this name, be it to its default."""
        return name in self.origins

    def flat(self) -> dict[str, Any]:
        """Every name with its value, given or not."""
        values = dict(self.passed_through)
        for section in SECTIONS:
            part: Section = getattr(self, section)
            values |= {name: getattr(part, name) for name in type(part).model_fields}
        return values

    def changed(self, **values: Any) -> Arguments:
        """The same with other values of some names, which are taken as they are."""
        parts = {
            key: getattr(self, key).model_copy(update=own)
            for key, section in SECTIONS.items()
            if (own := {name: values[name] for name in section.model_fields if name in values})
        }
        return replace(self, **parts)

    def noted(self, *notes: str) -> Arguments:
        """The same with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def public(self) -> dict[str, Any]:
        """What was given, as JSON can hold it, secrets masked."""
        values = self.flat()
        return {name: public_value(name, values[name]) for name in self.origins if name in values}


def public_value(name: str, value: Any) -> Any:
    """A value as JSON can hold it, masked where it, a part of it or its name is a secret's."""
    if isinstance(value, SecretStr) or (names_a_secret(name) and value is not None):
        return MASK
    if isinstance(value, Mapping):
        return {masked(str(key)): public_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [public_value("", inner) for inner in value]
    return value if isinstance(value, int | float | None) else masked(str(value))
