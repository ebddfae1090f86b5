"""Command line, file, or dict -> `Arguments`: the ways in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from luthier.arguments.assemble import LEFT_OUT, assemble, unknown_sentence
from luthier.arguments.files import is_config, read_config
from luthier.arguments.legacy import is_switched_on
from luthier.arguments.record import Arguments, Setting, fields
from luthier.arguments.rules import Purpose
from luthier.arguments.words import Words
from luthier.errors import ArgumentsError

Check: TypeAlias = Callable[[Arguments], Iterable[str]]
"""Says what is wrong with arguments beyond their own words: absent files, unknown names."""

MOST_BYTES = 1 << 20
"""A configuration is not larger; a larger JSON file holds data."""

OTHER_DATA = ("eval_dataset=null", "val_size=0", "mix_strategy=concat", "interleave_probs=null")
"""What is said of other data sets when files stand in their place."""


def parse_dict(
    values: Mapping[str, Any], *, purpose: Purpose = "train", check: Check | None = None
) -> Arguments:
    """Arguments from Python: flat names and their values; an ArgumentsError has all problems."""
    given = [Setting(str(name), value, "dict") for name, value in values.items()]
    return assemble(given, purpose=purpose, check=check)


def parse_command_line(argv: Sequence[str] | None = None, **options: Any) -> Arguments:
    """Arguments from words, those of the program by default; none may be anything else.

    Flags, a configuration file with overrides, or both; `options` and errors as of
    `parse_known_words`.
    """
    return parse_known_words(argv, **options, refuses_others=True)[0]


def parse_known_words(
    argv: Sequence[str] | None = None,
    *,
    look_for_args_file: bool = True,
    args_filename: str | Path | None = None,
    args_file_flag: str | None = None,
    purpose: Purpose = "train",
    check: Check | None = None,
    refuses_others: bool = False,
) -> tuple[Arguments, list[str]]:
    """Arguments from words, and the words that are no argument.

    What stands in files of words comes before the command line, which comes before nothing: a
    later word wins, and every word wins over the configuration file.

    Args:
        argv: the words; None takes those of the program.
        look_for_args_file: reads `<script>.args` beside the script, if it is there.
        args_filename: is read instead of it.
        args_file_flag: a flag whose value is such a file, too; of several, later ones win.
        purpose: what will be done with the arguments.
        check: its problems are raised together with those of the words.
        refuses_others: whether words that are no argument are problems.

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
            said.append(Words(path.name).read(path.read_text(encoding="utf-8").split()))
        else:
            notes.append(f"{path}: there is no such file; no arguments are read from it")
    said.append(Words().read(words))

    configs = [path for each in said for path in each.configs]
    given: list[Setting] = []
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
        refused = _refuse(each) if refuses_others else []
        if is_switched_on("ALLOW_EXTRA_ARGS"):
            notes += [sentence + LEFT_OUT for sentence in refused]
        else:
            problems += refused
    arguments = assemble(given, problems, notes, purpose=purpose, check=check, is_flags=not configs)
    return arguments, [word for each in said for word in each.rest]


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
    names = [word.lstrip("-").partition("=")[0].replace("-", "_") for word in said.unknown]
    return [unknown_sentence(said.origin, name, None, "--") for name in names] + [
        f"{said.origin}: {word!r} stands alone. Write `--name value`, `name=value`, or a "
        "configuration file that ends in .yaml, .yml or .json."
        for word in said.stray
    ]


def data_words(words: Sequence[str]) -> list[str]:
    """The same words, with files of data, and names of data sets, as the value of `dataset`.

    A JSON file is a configuration when it is one object with the name of an argument.
    """
    said = Words().read(words)
    alone = [*said.configs, *said.stray]
    files = [word for word in alone if not (is_config(word) and _holds_settings(word))]
    rest = list(words)
    for file in reversed(files):
        del rest[len(rest) - 1 - rest[::-1].index(file)]
    return [*rest, f"dataset={json.dumps(files)}", *OTHER_DATA] if files else rest


def _holds_settings(word: str) -> bool:
    file = Path(word).expanduser()
    if file.suffix.lower() != ".json" or not file.is_file():
        return True
    if file.stat().st_size > MOST_BYTES:
        return False
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and any(name in values for name in fields())
