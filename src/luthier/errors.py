"""What a user can mend, each with the sentence that says how.

LuthierError
├── ArgumentsError       several problems of one configuration, all at once
│   └── MissingArguments required arguments that nobody gave
├── DataError            a data set, a row, or dataset_info.json
├── TemplateError        a template, or a tokenizer's chat template
├── ModelError           a model folder, a tokenizer, an adapter
├── CheckpointError      a checkpoint or an output folder
│   ├── NoValidCheckpoint  none is as it was written
│   └── SaveError          nothing can be written to the output folder
├── NonFiniteError       a loss, a gradient or a weight that is NaN or infinite
├── OutOfMemory          a device that is too small for what it shall compute
├── LaunchError          the processes of a run do not find each other
├── Stopped              a run that was asked to stop, and can go on
├── MissingPackage       an optional package that is not installed
└── UnknownName          a name that no registry knows
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class LuthierError(Exception):
    """Says what was found, what was expected, and what to do; shown without a traceback."""

    exit_code = 2  # of the program that ends by it
    is_common = False
    """Whether every process of a run raises it, at the same point; then they leave together and the
    first one alone says it."""


class ArgumentsError(LuthierError):
    """Every problem found in one configuration, or the only one."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.problems, 1))
        return f"{len(self.problems)} problems in the configuration:\n{listed}"


class MissingArguments(ArgumentsError):
    """Required arguments are absent."""


class DataError(LuthierError):
    """A data set cannot be read as it is described."""


class TemplateError(LuthierError):
    """A template does not fit the conversation or the tokenizer."""


class ModelError(LuthierError):
    """A model, a tokenizer or an adapter cannot be used."""


class CheckpointError(LuthierError):
    """A checkpoint or an output folder cannot be used."""


class NoValidCheckpoint(CheckpointError):
    """No checkpoint that a run could go on from is as it was written."""

    exit_code = 3


class SaveError(CheckpointError):
    """Checkpoints or the model cannot be written: a full disk, most often."""

    exit_code = 28
    is_common = True


class NonFiniteError(LuthierError):
    """A number that is none; what was saved before is good."""

    exit_code = 65
    is_common = True


class OutOfMemory(LuthierError):
    """Memory runs out however little is computed at once."""


class LaunchError(LuthierError):
    """The processes of a run cannot be started, or do not find each other."""


class Stopped(LuthierError):
    """A run was asked to stop, and did; started again, it goes on from `checkpoint`, if any."""

    exit_code = 75
    is_common = True

    def __init__(self, message: str, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        super().__init__(message)


class MissingPackage(LuthierError):
    """An optional package is needed and absent."""


class UnknownName(LuthierError):
    """A name is not among the known ones.

    Args:
        kind: what the name is for, as users say it: "template", "stage", "argument".
        name: what was given.
        known: all names that would have been accepted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        hint = suggest(name, self.known)
        super().__init__(f"{kind} {name!r} is unknown.{hint}")


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known names, or with all of them when none is near."""
    names = sorted(known)
    folded = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), list(folded), n=3, cutoff=0.6)
    if near:
        return " Did you mean " + " or ".join(repr(folded[found]) for found in near) + "?"
    if not names:
        return ""
    return " Known: " + ", ".join(names) + "."
