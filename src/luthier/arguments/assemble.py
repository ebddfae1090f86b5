"""Settings from anywhere -> one checked `Arguments`, or all problems at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import NoneType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml.error import YAMLError

from luthier.arguments.evaluating import EvaluatingArguments
from luthier.arguments.exporting import ExportingArguments
from luthier.arguments.files import read_value
from luthier.arguments.knob import Section, split_commas
from luthier.arguments.legacy import (
    ENVIRONMENT,
    FALSE,
    LEGACY,
    TRUE,
    is_switched_on,
)
from luthier.arguments.record import SECTIONS, Arguments, Setting, fields, library_types
from luthier.arguments.resolve import resolve
from luthier.arguments.rules import TASKS, Purpose, broken_rules, missing_names, nothing_to_do
from luthier.arguments.wording import bare, describe, expectation, members, misfit
from luthier.errors import ArgumentsError, MissingArguments
from luthier.secrecy import learn, names_a_secret

USAGE = "     usage: luthier train CONFIG.yaml [name=value ...], or: luthier train --name value ..."

FAMILIAR = {
    "accumulation_steps": "gradient_accumulation_steps",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_length": "cutoff_len",
    "model": "model_name_or_path",
    "optimizer": "optim",
    "output": "output_dir",
    "rank": "lora_rank",
    "target_modules": "lora_target",
    "train_batch_size": "per_device_train_batch_size",
    "warmup": "warmup_ratio",
}
"""Names from elsewhere that are spelled too differently to be near."""


LEFT_OUT = " It is left out: ALLOW_EXTRA_ARGS is set."
"""What is said behind the sentence of an argument that nobody knows, where that is allowed."""

HINTS = {
    "max_samples": " It is one number for all data sets; `num_samples` in dataset_info.json says "
    "how many rows of one are drawn.",
}
"""What is said beside a value that does not fit, by the argument's name."""


def assemble(
    given: Iterable[Setting],
    problems: Iterable[str] = (),
    notes: Iterable[str] = (),
    *,
    purpose: Purpose = "train",
    check: Callable[[Arguments], Iterable[str]] | None = None,
    is_flags: bool = False,
) -> Arguments:
    """Checks and resolves what was given; a later setting of a name wins over an earlier one.

    `problems` were found in its form and `notes` are known before; `check` says what else is wrong
    with the resolved arguments, such as absent files, where wrong settings have their defaults.
    `is_flags` lists absent names as flags.

    Raises:
        MissingArguments: if nothing is wrong but that required names are absent.
        ArgumentsError: with every other problem.
    """
    given = list(given)
    for each in given:
        learn(each.name, each.value)
    found = _Assembly(problems, notes)
    settings = found.settle(given)
    passed_through = found.take_library_names(settings)
    sections = {name: found.section(kind, settings) for name, kind in SECTIONS.items()}
    arguments = Arguments(
        **sections,  # type: ignore[arg-type]
        passed_through=passed_through,
        origins={name: each.origin for name, each in settings.items()},
    )
    found.problems += broken_rules(arguments, found.wrong, purpose)
    found.notes += [
        f"{variable} is set in the environment, and has no effect. {instead}"
        for variable, instead in ENVIRONMENT.items()
        if is_switched_on(variable)
    ]
    for own, section in (("export", ExportingArguments), ("eval", EvaluatingArguments)):
        idle_here = [name for name in section.model_fields if name in settings]
        if idle_here and purpose != own:
            found.notes.append(f"{', '.join(idle_here)}: no effect here; `luthier {own}` reads it")
    missing = [each for each in missing_names(arguments, purpose) if each not in found.wrong]
    idle = nothing_to_do(arguments) if purpose == "train" and not found.wrong & TASKS else []
    resolved = resolve(replace(arguments, notes=tuple(found.notes)))
    for text in check(resolved) if check is not None else ():
        name = text.partition(" ")[0].rstrip(":")
        if name not in found.wrong and name not in missing:
            place = f"{arguments.origins[name]}: " if name in arguments.origins else ""
            if place + text not in found.problems:
                found.problems.append(place + text)
    if missing:
        spelled = [f"--{name}/--{name.replace('_', '-')}" for name in missing]
        sentence = f"the following arguments are required: {', '.join(missing)}"
        if is_flags:
            sentence = f"the following arguments are required: {', '.join(spelled)}\n{USAGE}"
        if not found.problems:
            raise MissingArguments([sentence, *idle])
        found.problems.insert(0, sentence)
    found.problems += idle
    if found.problems:
        raise ArgumentsError(found.problems)
    return resolved


def unknown_sentence(origin: str, name: str, value: Any = None, prefix: str = "") -> str:
    """Says that a name is unknown, with the nearest known ones."""
    ours = [*fields(), *(old for old, each in LEGACY.items() if each.to)]
    near = [FAMILIAR[name]] if name in FAMILIAR else []
    near = (
        near
        or difflib.get_close_matches(name, ours, n=3, cutoff=0.7)
        or difflib.get_close_matches(name, {*ours, *LEGACY, *library_types()}, n=3, cutoff=0.6)
    )
    sentence = f"{origin}: the argument {prefix}{name} is unknown."
    if isinstance(value, dict):
        return f"{sentence} Arguments are flat: write the names under it at the top level."
    if near:
        return f"{sentence} Did you mean {' or '.join(prefix + each for each in near)}?"
    return f"{sentence} `luthier train --help` lists all that are known."


class _Assembly:
    def __init__(self, problems: Iterable[str], notes: Iterable[str]) -> None:
        self.problems = list(problems)
        self.notes = list(notes)
        self.wrong: set[str] = set()

    def settle(self, given: Iterable[Setting]) -> dict[str, Setting]:
        """The last word on each of our names; old names are translated or judged on the way."""
        settled: dict[str, Setting] = {}
        spoken: dict[str, Setting] = {}
        last = {each.name: each for each in given}
        for each in sorted(last.values(), key=_joins):
            for name, value in self._translate(each).items():
                other = spoken.get(name)
                if other is not None and _joins(each):
                    listed = split_commas(settled[name].value)
                    joined = (*(one for one in listed if one not in ("none", value)), value)
                    if "all" not in listed:
                        settled[name] = replace(settled[name], value=",".join(joined))
                    continue
                if other is not None and _source(other) == _source(each):
                    if str(settled[name].value) != str(value):
                        self.problems.append(
                            f"{each.origin}: {other.name} and {each.name} say different things "
                            f"about {name}; keep one of them."
                        )
                    continue
                settled[name] = replace(each, name=name, value=value)
                spoken[name] = each
        return settled

    def _translate(self, each: Setting) -> Mapping[str, Any]:
        legacy = LEGACY.get(each.name)
        if legacy is None:
            return {each.name: each.value}
        is_default = legacy.is_default(each.value)
        if legacy.to:
            is_switch = isinstance(legacy.default, bool)
            if is_switch and str(each.value).lower() not in (*TRUE, *FALSE):
                self.problems.append(
                    f"{each.origin}: {each.name} is {each.value!r}; expected true or false. "
                    f"{legacy.says}"
                )
                return {}
            self.notes.append(f"{each.origin}: {each.name} is an old name. {legacy.says}")
            value = each.value if legacy.value is None else legacy.value
            return {} if is_default else {legacy.to: value}
        if legacy.part_of is not None:
            if not is_default:
                self.notes.append(
                    f"{each.origin}: {each.name} has no effect: it belongs to {legacy.part_of}."
                )
        elif legacy.status == "accepted without effect" and (is_default or not legacy.is_fixed):
            self.notes.append(f"{each.origin}: {each.name} has no effect. {legacy.says}")
        elif not is_default:
            shown = "given" if names_a_secret(each.name) else repr(each.value)
            self.problems.append(f"{each.origin}: {each.name} is {shown}. {legacy.says}")
        return {}

    def take_library_names(self, settings: dict[str, Setting]) -> dict[str, Any]:
        """Names that only the installed transformers knows; what nobody knows is a problem."""
        passed: dict[str, Any] = {}
        for name in [name for name in settings if name not in fields()]:
            each = settings[name]
            if name not in library_types():
                sentence = unknown_sentence(each.origin, name, each.value)
                if is_switched_on("ALLOW_EXTRA_ARGS"):
                    self.notes.append(sentence + LEFT_OUT)
                else:
                    self.problems.append(sentence)
                del settings[name]
                continue
            annotation = library_types()[name]
            try:
                passed[name] = TypeAdapter(annotation).validate_python(typed(each, annotation))
            except ValidationError as error:
                expected = describe(annotation)
                self.problems.append(
                    misfit(each.origin, name, annotation, expected, error.errors()[0])
                )
        return passed

    def section(self, kind: type[Section], settings: Mapping[str, Setting]) -> Section:
        """The section's settings, checked; wrong ones are noted and left at their defaults."""
        own = {name: settings[name] for name in kind.model_fields if name in settings}
        values = {
            name: typed(each, kind.model_fields[name].annotation) for name, each in own.items()
        }
        try:
            return kind(**values)
        except ValidationError as error:
            first = {str(each["loc"][0]): each for each in reversed(error.errors())}
        for name in [name for name in own if name in first]:
            field = kind.model_fields[name]
            sentence = misfit(
                own[name].origin, name, field.annotation, expectation(field), first[name]
            )
            self.problems.append(sentence + HINTS.get(name, ""))
        self.wrong |= first.keys()
        return kind(**{name: value for name, value in values.items() if name not in first})


def typed(each: Setting, annotation: Any) -> Any:
    """The value as its type wants it: words of a command line become null, lists, mappings."""
    if not each.is_text:
        return each.value
    kinds = {bare(part) for part in members(annotation)}
    if isinstance(each.value, list):
        return ",".join(each.value) if tuple in kinds else each.value
    if each.value in ("null", "~") and kinds & {NoneType, tuple}:
        return None
    if each.value[:1] in ("[", "{") and kinds & {tuple, list, dict}:
        try:
            return read_value(each.value)
        except YAMLError:
            return each.value
    return [each.value] if list in kinds and str not in kinds else each.value


def _joins(each: Setting) -> bool:
    return each.name in LEGACY and LEGACY[each.name].joins


def _source(each: Setting) -> str:
    return each.origin.rpartition(":")[0] or each.origin
