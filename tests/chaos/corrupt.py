"""Damages every file of the newest checkpoint in four ways: each time the one before is taken.

A run of six steps leaves checkpoints of steps 2, 4 and 6. For each file of the last one, and each
way to damage it (missing, cut to half, empty, one flipped byte), the run is started again without
its result: it must name the file, go on from step 4, and end bit-equal to the run that nobody
touched. Then all checkpoints are damaged (exit code 3, before a model is loaded), and one that is
named (refused).

    python -m tests.chaos.corrupt
    python -m tests.chaos.corrupt --kind sft_full --ranks 2
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.chaos import trial

LENGTH = {"max_steps": 6, "save_steps": 2, "save_total_limit": 3}


def missing(path: Path) -> None:
    """Deletes a file."""
    path.unlink()


def half(path: Path) -> None:
    """Cuts a file in the middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Leaves nothing of a file but its name."""
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """Turns one bit at a place that the file's name decides."""
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 1
    path.write_bytes(content)


DAMAGES = (missing, half, empty, flipped)


class Damaged:
    """A finished run, and copies of it that have been damaged.

    Args:
        workshop: model and data.
        kind: of the run, see `trial.KINDS`.
        num_ranks: processes.
        more: further arguments.
    """

    def __init__(
        self,
        workshop: trial.Workshop,
        kind: str = "sft_lora",
        num_ranks: int = 1,
        more: Mapping[str, object] = {},
    ) -> None:
        self._workshop, self._kind, self._num_ranks = workshop, kind, num_ranks
        self._more = {**LENGTH, **more}
        self.straight = workshop.folder / "straight"
        trial.run_well(self._arguments(self.straight), num_ranks)

    def files(self) -> list[str]:
        """The names of the files of the newest checkpoint."""
        newest = self.straight / "checkpoint-6"
        return sorted(
            path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file()
        )

    def problems(self, name: str, damage: Any) -> Iterator[str]:
        """What is wrong after a file was damaged in a way; nothing should be."""
        folder = self._copy()
        damage(folder / "checkpoint-6" / name)
        first, *_ = trial.run(self._arguments(folder), self._num_ranks)
        said = first.stderr
        if first.exit_code != 0:
            yield f"exit code {first.exit_code}:\n{said[-2000:]}"
            return
        if f"checkpoint-6 is left out: {name} " not in said:
            yield f"{name} is not named as the damaged file"
        if f"going on from {folder / 'checkpoint-4'}" not in said:
            yield "it did not go on from step 4"
        yield from trial.differences(self.straight, folder)
        shutil.rmtree(folder)

    def problems_when_all_are_damaged(self) -> Iterator[str]:
        """What is wrong with the end of a run that has no good checkpoint."""
        folder = self._copy()
        for step in (2, 4, 6):
            flipped(folder / f"checkpoint-{step}" / "optimizer.pt")
        yield from self._refusal(folder, [f"checkpoint-{step}: " for step in (2, 4, 6)])
        shutil.rmtree(folder)

    def problems_when_a_named_one_is_damaged(self) -> Iterator[str]:
        """What is wrong with the refusal of a damaged checkpoint that was named."""
        folder = self._copy()
        named = folder / "checkpoint-6"
        half(named / "rng_state.pth" if self._num_ranks == 1 else named / "rng_state_1.pth")
        yield from self._refusal(folder, [f"{named} is not as it was written"], named)
        shutil.rmtree(folder)

    def _refusal(self, folder: Path, words: list[str], named: Path | None = None) -> Iterator[str]:
        more = {} if named is None else {"resume_from_checkpoint": named}
        first, *_ = trial.run(self._arguments(folder, **more), self._num_ranks)
        if first.exit_code != 3:
            yield f"exit code {first.exit_code}, expected 3:\n{first.stderr[-2000:]}"
        yield from (f"{word!r} is not said" for word in words if word not in first.stderr)
        if "trainable params" in first.stderr:
            yield "a model was loaded before"

    def _copy(self) -> Path:
        """The run as if it had been killed behind its last checkpoint."""
        folder = Path(tempfile.mkdtemp(dir=self._workshop.folder, prefix="damaged-"))
        for step in (2, 4, 6):
            name = f"checkpoint-{step}"
            shutil.copytree(self.straight / name, folder / name)
        shutil.copy(self.straight / "trainer_log.jsonl", folder)
        return folder

    def _arguments(self, folder: Path, **more: object) -> dict[str, Any]:
        return self._workshop.arguments(folder, self._kind, **self._more, **more)


def main(words: list[str] | None = None) -> int:
    """Tries all, and says how many of them went well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="sft_lora", choices=trial.KINDS)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args(words)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        damaged = Damaged(trial.stand_alone(Path(folder)), options.kind, options.ranks)
        cases = [
            (f"{name} {damage.__name__}", damaged.problems(name, damage))
            for name in damaged.files()
            for damage in DAMAGES
        ]
        cases += [
            ("all damaged", damaged.problems_when_all_are_damaged()),
            ("a named one damaged", damaged.problems_when_a_named_one_is_damaged()),
        ]
        num_well = 0
        for label, problems in cases:
            told = list(problems)
            num_well += not told
            print(f"{'ok' if not told else 'WRONG'}  {label}", *told, sep="\n      ")
    print(f"{num_well} of {len(cases)} went well, {time.monotonic() - begun:.0f} s")
    return int(num_well < len(cases))


if __name__ == "__main__":
    sys.exit(main())
