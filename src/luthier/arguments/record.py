"""All arguments of a run, checked, with where each came from."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from luthier.arguments.data import DataArguments
from luthier.arguments.evaluating import EvaluatingArguments
from luthier.arguments.exporting import ExportingArguments
from luthier.arguments.finetuning import FinetuningArguments
from luthier.arguments.generating import GeneratingArguments
from luthier.arguments.knob import Facts, Section
from luthier.arguments.model import ModelArguments
from luthier.arguments.training import TrainingArguments
from luthier.secrecy import MASK, masked, names_a_secret

SECTIONS: dict[str, type[Section]] = {
    "model": ModelArguments,
    "data": DataArguments,
    "finetuning": FinetuningArguments,
    "training": TrainingArguments,
    "generating": GeneratingArguments,
    "exporting": ExportingArguments,
    "evaluating": EvaluatingArguments,
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
    return {n: Facts(**each.json_schema_extra) for n, each in fields().items()}  # type: ignore[arg-type]


@cache
def meanings() -> dict[str, str]:
    """What every knob means, by its flat name: the text under it, read from its file when asked."""
    return {
        ast.unparse(knob.target): " ".join(ast.literal_eval(text.value).split())
        for section in SECTIONS.values()
        for knob, text in pairwise(_class_body(Path(inspect.getfile(section)), section.__name__))
        if isinstance(knob, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


@dataclass(frozen=True)
class Setting:
    """A name, a value, and where it stood."""

    name: str
    value: Any
    origin: str  # `config.yaml:12`, `command line`, `dict`, `train.args`
    is_text: bool = False  # whether the value is text of a command line that still has to be read


@dataclass(frozen=True)
class Arguments:
    """What a configuration says."""

    model: ModelArguments
    data: DataArguments
    finetuning: FinetuningArguments
    training: TrainingArguments
    generating: GeneratingArguments
    exporting: ExportingArguments = field(default_factory=ExportingArguments)
    evaluating: EvaluatingArguments = field(default_factory=EvaluatingArguments)
    passed_through: Mapping[str, Any] = field(default_factory=dict)
    """Names that only the installed transformers knows, for its own `TrainingArguments`."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Name -> where it was given: `config.yaml:12`, `command line`, `dict`, `train.args`. Names
    that nobody gave are absent."""
    notes: tuple[str, ...] = ()  # what was renamed, ignored or inferred, one line each

    def given(self, name: str) -> bool:
        """Whether somebody set this name, be it to its default."""
        return name in self.origins

    def generating_names(self) -> list[str]:
        """The names that are set and have answers generated."""
        values = self.flat()
        return [name for name, known in facts().items() if known.generates and values[name]]

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


_FILE = "training_args.py"

_TYPES = {
    "Any": Any,
    "Literal": Literal,
    "None": NoneType,
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
}


@cache
def library_types() -> dict[str, Any]:
    """What the installed `TrainingArguments` takes: name -> type, `Any` where only it knows.

    It is read from its text, not imported; empty without transformers.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    return {
        field.target.id: _type_of(field.annotation)
        for field in _class_body(Path(spec.origin).parent / _FILE, "TrainingArguments")
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _class_body(file: Path, name: str) -> list[ast.stmt]:
    module = ast.parse(file.read_text(encoding="utf-8"))
    return next(
        each.body for each in module.body if isinstance(each, ast.ClassDef) and each.name == name
    )


def _type_of(annotation: ast.expr) -> Any:
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    if not names <= _TYPES.keys():
        return Any
    expression = compile(ast.Expression(annotation), _FILE, "eval")
    return eval(expression, {"__builtins__": {}}, _TYPES)
