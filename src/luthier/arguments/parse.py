"""Command line, file, or dict -> `Arguments`: the ways in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

from luthier.arguments.assemble import LEFT_OUT, assemble, unknown_sentence
from luthier.arguments.files import read_config
from luthier.arguments.flags import Shape, Words, read_words
from luthier.arguments.given import Given
from luthier.arguments.legacy import LEGACY, is_switched_on
from luthier.arguments.library_names import library_types
from luthier.arguments.record import Arguments, fields
from luthier.arguments.rules import Purpose
from luthier.arguments.wording import bare, members
from luthier.errors import ArgumentsError

COMMAND_LINE = "command line"

Check: TypeAlias = Callable[[Arguments], Iterable[str]]
"""Says what is wrong with arguments beyond their own words: absent files, unknown names."""


def parse_dict(
    values: Mapping[str, Any], *, purpose: Purpose = "train", check: Check | None = None
) -> Arguments:
    """Arguments from Python: flat names and their values; `check` as in `parse_command_line`.

    Raises:
        ArgumentsError: with all problems.
    """
    given = [Given(str(name), value, "dict") for name, value in values.items()]
    return assemble(given, purpose=purpose, check=check)


def parse_file(
    path: str | Path, overrides: Sequence[str] = (), *, purpose: Purpose = "train"
) -> Arguments:
    """Arguments from a YAML or JSON file; `overrides` are words such as `lora_rank=16`.

    Raises:
        ArgumentsError: with all problems.
    """
    return parse_command_line([str(path), *overrides], purpose=purpose)


@overload
def parse_command_line(
    argv: Sequence[str] | None = None,
    *,
    return_remaining_strings: Literal[False] = False,
    look_for_args_file: bool = True,
    args_filename: str | Path | None = None,
    args_file_flag: str | None = None,
    purpose: Purpose = "train",
    check: Check | None = None,
) -> Arguments: ...


@overload
def parse_command_line(
    argv: Sequence[str] | None = None,
    *,
    return_remaining_strings: Literal[True],
    look_for_args_file: bool = True,
    args_filename: str | Path | None = None,
    args_file_flag: str | None = None,
    purpose: Purpose = "train",
    check: Check | None = None,
) -> tuple[Arguments, list[str]]: ...


def parse_command_line(
    argv: Sequence[str] | None = None,
    *,
    return_remaining_strings: bool = False,
    look_for_args_file: bool = True,
    args_filename: str | Path | None = None,
    args_file_flag: str | None = None,
    purpose: Purpose = "train",
    check: Check | None = None,
) -> Arguments | tuple[Arguments, list[str]]:
    """Arguments from words: flags, a configuration file with overrides, or both.

    What stands in files of words comes before the command line, which comes before nothing: a
    later word wins, and every word wins over the configuration file.

    Args:
        argv: the words; None takes those of the program.
        return_remaining_strings: gives back words that are no argument, instead of refusing them.
        look_for_args_file: reads `<script>.args` beside the script, if it is there.
        args_filename: is read instead of it.
        args_file_flag: a flag whose value is such a file, too; it may stand several times, later
            files win.
        purpose: what will be done with the arguments.
        check: its problems are raised together with those of the words.

    Raises:
        MissingArguments: if nothing is wrong but that required arguments are absent.
        ArgumentsError: with all problems.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    problems: list[str] = []
    notes: list[str] = []
    files = [Path(args_filename)] if args_filename is not None else []
    if not files and look_for_args_file and sys.argv[0]:
        files = [path for path in [Path(sys.argv[0]).with_suffix(".args")] if path.is_file()]
    if args_file_flag is not None:
        named, words = _take_flag(words, args_file_flag)
        files += named
    said = []
    for path in files:
        if path.is_file():
            content = path.read_text(encoding="utf-8").split()
            said.append(read_words(content, path.name, shapes(), _library_shapes))
        else:
            notes.append(f"{path}: there is no such file; no arguments are read from it")
    said.append(read_words(words, COMMAND_LINE, shapes(), _library_shapes))

    configs = [path for each in said for path in each.configs]
    given: list[Given] = []
    for config in configs[:1]:
        given, problems = read_config(config)
        if problems and not given:
            raise ArgumentsError(problems)
    for config in configs[1:]:
        problems.append(
            f"{config}: a second configuration file beside {configs[0]}; keep one of them."
        )
    for each in said:
        given += each.given
        problems += each.problems
        if not return_remaining_strings:
            refused = _refuse(each)
            if is_switched_on("ALLOW_EXTRA_ARGS"):
                notes += [sentence + LEFT_OUT for sentence in refused]
            else:
                problems += refused
    arguments = assemble(given, problems, notes, purpose=purpose, check=check, is_flags=not configs)
    if return_remaining_strings:
        return arguments, [word for each in said for word in each.rest]
    return arguments


def words_alone(words: Sequence[str]) -> list[str]:
    """Those of `words` that are no settings: configuration files, and what nobody expects."""
    said = read_words(words, COMMAND_LINE, shapes(), _library_shapes)
    return [*said.configs, *said.stray]


@cache
def shapes() -> dict[str, Shape]:
    """Every name -> how many words follow its flag."""
    ours = {name: _shape(each.annotation, each.default) for name, each in fields().items()}
    legacy: dict[str, Shape] = {
        name: _shape(type(each.default), each.default) for name, each in LEGACY.items()
    }
    return {**legacy, **ours}


@cache
def _library_shapes() -> dict[str, Shape]:
    return {
        name: _shape(annotation, bool in members(annotation) or None)
        for name, annotation in library_types().items()
        if name not in shapes()
    }


def _shape(annotation: Any, default: Any) -> Shape:
    kinds = {bare(part) for part in members(annotation)}
    if bool in kinds and default is not None:
        return "switch"
    return "list" if kinds & {tuple, list} else "value"


def _take_flag(words: Sequence[str], flag: str) -> tuple[list[Path], list[str]]:
    found: list[Path] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name, has_value, value = word.partition("=")
        if name != flag:
            rest.append(word)
        elif has_value:
            found.append(Path(value))
        else:
            found += [Path(value) for value in [next(waiting, None)] if value is not None]
    return found, rest


def _refuse(said: Words) -> list[str]:
    origin = said.origin
    unknown = [
        unknown_sentence(origin, word.lstrip("-").partition("=")[0].replace("-", "_"), None, "--")
        for word in said.unknown
    ]
    stray = [
        f"{origin}: {word!r} stands alone. Write `--name value`, `name=value`, or a configuration "
        "file that ends in .yaml, .yml or .json."
        for word in said.stray
    ]
    return unknown + stray
