"""the rows that are to be looked at, by number, by chance, or by their place."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.check import RowProblem
from luthier.data.reading import Batch, DatasetReader
from luthier.errors import DataError
from luthier.records import Conversation


@dataclass(frozen=True)
class PickedRow:
    """A row, and what it says or why it says nothing.

    Attributes:
        dataset: the data set's name.
        origin: the file and the line on which it starts.
        values: what stands there; None where it could not be parsed.
        conversation: what it says; None where there is a problem.
        problem: why training leaves it out.
    """

    dataset: str
    origin: str
    values: Any
    conversation: Conversation | None = None
    problem: RowProblem | None = None


def pick_first(reader: DatasetReader, count: int) -> list[PickedRow]:
    """The first rows of a data set."""
    found: list[PickedRow] = []
    for batch in reader.batches():
        found += list(_rows(reader.name, batch))[: count - len(found)]
        if len(found) == count:
            break
    return found


def pick_by_chance(reader: DatasetReader, count: int, seed: int) -> list[PickedRow]:
    """Rows that are drawn from the whole data set, in its order; the same for the same seed."""
    chance = random.Random(seed)
    kept: list[tuple[int, PickedRow]] = []
    number = 0
    for batch in reader.batches():
        for row in _rows(reader.name, batch):
            if len(kept) < count:
                kept.append((number, row))
            elif (at := chance.randrange(number + 1)) < count:
                kept[at] = (number, row)
            number += 1
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def pick_by_place(readers: Sequence[DatasetReader], places: Sequence[str]) -> list[PickedRow]:
    """The rows that start at `FILE:LINE`, where FILE may be the end of a longer path.

    Raises:
        DataError: if no row starts there, with the nearest that do.
    """
    found: dict[str, PickedRow] = {}
    starts: list[str] = []
    wanted = [_parse(place) for place in places]
    for reader in readers:
        for batch in reader.batches():
            for row in _rows(reader.name, batch):
                file, _, line = row.origin.rpartition(":")
                for (end, number), place in zip(wanted, places, strict=True):
                    if place not in found and _is_at(file, end):
                        starts.append(row.origin)
                        if int(line) == number:
                            found[place] = row
    for (end, number), place in zip(wanted, places, strict=True):
        if place not in found:
            near = sorted(
                {one for one in starts if _is_at(one.rpartition(":")[0], end)},
                key=lambda one: abs(int(one.rpartition(":")[2]) - number),
            )
            hint = f" The nearest: {', '.join(near[:3])}." if near else " No file ends so."
            raise DataError(f"--row {place}: no row of the data sets starts there.{hint}")
    return [found[place] for place in places]


def _rows(name: str, batch: Batch) -> Iterator[PickedRow]:
    conversations = dict(batch.conversations)
    problems = {problem.origin: problem for problem in batch.problems}
    for number, row in enumerate(batch.rows):
        if isinstance(row, RowProblem):
            yield PickedRow(name, row.origin, None, problem=row)
        else:
            origin = str(row.origin)
            conversation = conversations.get(number)
            problem = problems.get(origin) if conversation is None else None
            yield PickedRow(name, origin, row.values, conversation, problem)


def _is_at(file: str, end: str) -> bool:
    return file == end or file.endswith(f"/{end.removeprefix('./')}")


def _parse(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    if not file or not line.isdecimal():
        raise DataError(f"--row {place}: a place is a file and a line, such as data/user.json:17.")
    return file, int(line)
