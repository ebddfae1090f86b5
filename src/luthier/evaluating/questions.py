"""Files of a benchmark, as its authors give them out -> questions with options and an answer.

A subject is a CSV file in `dev`, `val` or `test`: MMLU's (Hendrycks et al. 2021) has no header and
is called SUBJECT_test.csv, C-Eval's (Huang et al. 2023) has id, question, A to D, answer, CMMLU's
(Li et al. 2023) an unnamed number, Question, A to D, Answer.
"""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import DataError

BENCHMARKS = ("mmlu", "ceval", "cmmlu")

SPLITS = {
    "train": ("dev", "train"),
    "dev": ("dev", "train"),
    "validation": ("val", "validation"),
    "val": ("val", "validation"),
    "test": ("test",),
}
"""A part as `task` names it -> the folders that may hold it."""

NUM_NAMED = 5
"""Wrong lines that a message names."""


@dataclass(frozen=True)
class Question:
    """One question of multiple choice."""

    text: str
    options: tuple[str, ...]  # in the order of the letters
    answer: int  # which of them is right
    origin: str  # file:line

    @property
    def letters(self) -> str:
        """Those of the options."""
        return string.ascii_uppercase[: len(self.options)]


@dataclass(frozen=True)
class Subject:
    """The questions of one subject, and those that are shown before them."""

    name: str  # as files call it
    title: str  # as prompts call it
    category: str  # empty where none is known
    questions: tuple[Question, ...]
    shots: tuple[Question, ...]


def read_subjects(task: str, task_dir: str, num_shots: int) -> list[Subject]:
    """All subjects of a task such as `mmlu_test`, by name.

    `mapping.json` beside the files, as LLaMA-Factory has it, gives titles and categories.

    Raises:
        DataError: if files are absent, or any of their lines is no question.
    """
    benchmark, _, part = task.partition("_")
    if benchmark not in BENCHMARKS or part not in SPLITS:
        raise DataError(
            f"task: {task!r} is unknown. Expected is one of {', '.join(BENCHMARKS)} with a part "
            f"({', '.join(SPLITS)}), such as mmlu_test or ceval_validation."
        )
    root = Path(task_dir).expanduser()
    places = [root / benchmark, root / benchmark / "data", root, root / "data"]
    asked, asked_from = _files(places, SPLITS[part])
    if not asked:
        raise DataError(
            f"task_dir: there is no {' or '.join(SPLITS[part])} folder with CSV files in "
            f"{', '.join(map(str, places))}. Put the files of {benchmark} there, as its authors "
            "give them out."
        )
    shown, _ = _files(places, SPLITS["dev"]) if num_shots else ({}, None)
    known = _mapping(asked_from)
    subjects = []
    for name, file in sorted(asked.items()):
        if num_shots and name not in shown:
            raise DataError(
                f"task_dir: {file} has no questions to show: expected is dev/{name}_dev.csv or "
                f"dev/{name}.csv beside it. Add it, or set n_shot: 0."
            )
        shots = read_questions(shown[name])[:num_shots] if num_shots else []
        said = known.get(name, {})
        subjects.append(
            Subject(
                name,
                str(said.get("name", name.replace("_", " "))),
                str(said.get("category", "")),
                tuple(read_questions(file)),
                tuple(shots),
            )
        )
    return subjects


def read_questions(file: Path) -> list[Question]:
    """The questions of a CSV file, with or without a header.

    Raises:
        DataError: naming the first lines that are none.
    """
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        lines = []
        end = 0
        for cells in reader:
            lines.append((end + 1, cells))
            end = reader.line_num
    names = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    header = names if "question" in names and "a" in names else None
    found, problems = [], []
    for number, cells in lines[1 if header else 0 :]:
        origin = f"{file}:{number}"
        try:
            found.append(_question(cells, header, origin))
        except ValueError as problem:
            problems.append(f"{origin}: {problem}")
    if problems:
        rest = f"\n... and {len(problems) - NUM_NAMED:,} more" * (len(problems) > NUM_NAMED)
        raise DataError("\n".join(problems[:NUM_NAMED]) + rest)
    if not found:
        raise DataError(f"{file} has no question.")
    return found


def _question(cells: list[str], header: list[str] | None, origin: str) -> Question:
    if header is None:
        if len(cells) < 4:
            raise ValueError(
                f"{len(cells)} cells; expected are a question, its options and a letter."
            )
        text, *options, letter = cells
    else:
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} cells, and the header has {len(header)}.")
        row = dict(zip(header, cells, strict=True))
        options = [row[each] for each in string.ascii_lowercase if each in row]
        text, letter = row["question"], row.get("answer", "")
    letters = string.ascii_uppercase[: len(options)]
    if not text.strip():
        raise ValueError("the question is empty.")
    if len(letter.strip()) != 1 or letter.strip() not in letters:
        hint = " This part has no answers; take the validation part." * (not letter.strip())
        raise ValueError(f"the answer is {letter!r}; expected is one of {letters}.{hint}")
    return Question(text, tuple(options), letters.index(letter.strip()), origin)


def _files(places: list[Path], folders: tuple[str, ...]) -> tuple[dict[str, Path], Path]:
    """Subjects with their files in the first place that has some, and that place."""
    for place in places:
        for folder in folders:
            files = sorted((place / folder).glob("*.csv"))
            if files:
                ends = tuple(f"_{each}" for each in {*folders, folder})
                return {_without(file.stem, ends): file for file in files}, place
    return {}, places[0]


def _without(name: str, ends: tuple[str, ...]) -> str:
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)


def _mapping(place: Path) -> Mapping[str, Any]:
    for file in (place / "mapping.json", place.parent / "mapping.json"):
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as problem:
                raise DataError(f"{file} is no JSON: {problem}.") from problem
            if isinstance(found, dict):
                return {name: said for name, said in found.items() if isinstance(said, dict)}
    return {}


def categories(subjects: list[Subject]) -> Iterator[str]:
    """Those that the subjects have, in order."""
    yield from dict.fromkeys(each.category for each in subjects if each.category)
