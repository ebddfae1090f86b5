"""`luthier data show`: rows as conversation, pieces and tokens, the learned ones marked."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from luthier.errors import ArgumentsError, DataError, MissingArguments

if TYPE_CHECKING:
    from luthier.arguments.record import Arguments
    from luthier.inspecting.view import PickedRow
    from luthier.stages.stage import Stage

SUMMARY = "show how rows become tokens, and which are learned: luthier data show CONFIG.yaml"

USAGE = """\
usage: luthier data show CONFIG.yaml [FILE ...] [name=value ...] [-n 3] [--seed SEED]
                         [--row FILE:LINE ...] [--html FILE]

Shows rows from the file to the tokens, as training sees them: the row, the conversation, the pieces
that the template makes of it, and the tokens with the turns' borders, the learned ones in green,
special ones in violet, those that cutoff_len cuts off struck out. In a pipe brackets take the place
of colours. No weights are read.

  -n COUNT         how many rows of each data set, 3 by default
  --seed SEED      draws them from the whole data set; by default the first ones are shown
  --row FILE:LINE  shows the row that starts there; may stand several times
  --html FILE      writes one HTML page instead"""


def run(argv: list[str]) -> int:
    """Shows what the words ask for."""
    if not argv:
        raise MissingArguments([f"luthier data show needs to know what to show.\n{USAGE}"])
    asked, words = _read_flags(argv)

    from luthier.arguments.parse import data_words, parse_command_line
    from luthier.training.preflight import find_problems_of_the_data

    arguments = parse_command_line(
        data_words(words), purpose="data", check=find_problems_of_the_data, look_for_args_file=False
    )
    if not arguments.model.model_name_or_path:
        raise MissingArguments(
            "luthier data show needs a tokenizer: name a configuration, or add "
            "model_name_or_path=FOLDER."
        )

    from luthier.inspecting.view import show_row
    from luthier.stages.conversing import Conversing
    from luthier.training.encoder import load_stage

    stage = load_stage(arguments)
    if not isinstance(stage, Conversing):
        raise DataError(
            "stage: pt learns texts, and this shows conversations. `luthier data check` names the "
            "bad rows and counts tokens, `luthier data prepare` encodes them."
        )
    rows = [show_row(row, stage) for row in _pick(arguments, stage, asked)]
    cutoff_len = arguments.data.cutoff_len
    if asked.html is not None:
        from luthier.inspecting.view import page

        title = f"rows of {', '.join((*arguments.data.dataset, *arguments.data.eval_dataset))}"
        file = Path(asked.html).expanduser()
        try:
            file.write_text(page(rows, title, cutoff_len), encoding="utf-8")
        except OSError as problem:
            why = f"it cannot be written: {problem.strerror}"
            raise DataError(f"--html {file}: {why}.") from problem
        print(f"{len(rows):,} rows: {asked.html}")
        return 0

    from luthier.inspecting.view import Style, legend, lines

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    style = Style(sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    print(legend(style), end="\n\n")
    for row in rows:
        print("\n".join(lines(row, style, cutoff_len)))
    return 0


def _pick(arguments: Arguments, stage: Stage, asked: Namespace) -> list[PickedRow]:
    from luthier.data.catalog import load_catalog
    from luthier.data.reading import DatasetReader
    from luthier.inspecting.view import pick_by_chance, pick_by_place, pick_first

    data = arguments.data
    catalog = load_catalog(data.dataset_dir, allow_outside=data.allow_outside)
    readers = [
        DatasetReader(arguments, catalog, name, stage, is_evaluated)
        for names, is_evaluated in ((data.dataset, False), (data.eval_dataset, True))
        for name in names
    ]
    if asked.row:
        return pick_by_place(readers, asked.row)
    if asked.seed is not None:
        return [row for each in readers for row in pick_by_chance(each, asked.n, asked.seed)]
    return [row for each in readers for row in pick_first(each, asked.n)]


class _Flags(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentsError(
            [f"luthier data show: {message}. `luthier data show --help` says how."]
        )


def _read_flags(argv: list[str]) -> tuple[Namespace, list[str]]:
    flags = _Flags(add_help=False, allow_abbrev=False)
    flags.add_argument("-n", type=int, default=3, metavar="COUNT")
    flags.add_argument("--seed", type=int)
    flags.add_argument("--row", action="append", metavar="FILE:LINE")
    flags.add_argument("--html", metavar="FILE")
    asked, words = flags.parse_known_args(argv)
    if asked.n < 1:
        raise ArgumentsError([f"luthier data show: -n is {asked.n}; expected 1 or more rows."])
    return asked, words
