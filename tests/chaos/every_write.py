"""Ends a run after every single file operation of one save: each time it can go on, bit-equal.

The save of step 4 (it publishes a checkpoint and deletes the one of step 2), or that of the model
at the end, is counted once: folders made, files opened for writing, written by torch or
safetensors, synced, renamed, deleted. Then the run is ended by force before the first of these
operations, before the second, and so on; where torch or safetensors write a file, also with half
of it written. Started again it must go on from a good checkpoint, leave no stage behind, and end
bit-equal to the run that nobody touched.

    python -m tests.chaos.every_write
    python -m tests.chaos.every_write --part model --kind sft_full
"""

from __future__ import annotations

import argparse
import builtins
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.chaos import trial

Part = Literal["checkpoint", "model"]

KILLED = 137

LENGTH = {"max_steps": 6, "save_steps": 2, "save_total_limit": 1}

CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
"""Events of Python that come before a file system changes, beside opening for writing."""


class Operations:
    """Counts what a save does to files, and ends the process before one of them.

    Args:
        part: the save that is watched.
        record: gets a line for each operation.
        last: the number of the operation that never happens; None for a whole save.
        torn: whether the file that it would write is left half written.
    """

    def __init__(self, part: Part, record: Path, last: int | None, torn: bool) -> None:
        self._part, self._record, self._last, self._torn = part, record, last, torn
        self._number, self._is_watched = 0, False

    def install(self) -> None:
        """From now on the save is watched."""
        import safetensors.torch
        import torch

        from luthier.checkpoints import files
        from luthier.checkpoints.saver import CheckpointSaver

        files.delete_later = files.delete  # in the same order every time
        save, save_model = CheckpointSaver.save, CheckpointSaver.save_model

        def watched_save(saver: CheckpointSaver, progress: dict[str, Any]) -> Any:
            step = saver._trainer.state.global_step
            with self._watching(self._part == "checkpoint" and step == 4):
                return save(saver, progress)

        def watched_save_model(saver: CheckpointSaver, *rest: Any) -> None:
            with self._watching(self._part == "model"):
                save_model(saver, *rest)

        CheckpointSaver.save = watched_save  # type: ignore[method-assign]
        CheckpointSaver.save_model = watched_save_model  # type: ignore[method-assign]
        os.fsync = self._before(os.fsync, "sync")
        torch.save = self._writing(torch.save, place=1)
        safetensors.torch.save_file = self._writing(safetensors.torch.save_file, place=1)
        for module in (
            "peft.utils.save_and_load",
            "peft.peft_model",
            "transformers.modeling_utils",
        ):
            found = sys.modules.get(module)
            for name in ("save_file", "safe_save_file"):
                if found is not None and hasattr(found, name):
                    setattr(found, name, self._writing(getattr(found, name), place=1))
        sys.addaudithook(self._heard)

    def _watching(self, is_meant: bool) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def window() -> Iterator[None]:
            self._is_watched = is_meant
            yield
            self._happens("end of the save") if is_meant else None
            self._is_watched = False

        return window()

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_watched or threading.current_thread() is not threading.main_thread():
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes and isinstance(path, str | bytes | Path):
                self._happens(f"open {mode} {os.fsdecode(path)}")
        elif event in CHANGING:
            self._happens(f"{event} {arguments[0]}")

    def _happens(self, what: str) -> None:
        self._is_watched = False
        try:
            if self._number == self._last and not self._torn:
                os._exit(KILLED)
            if self._last is None:
                with builtins.open(self._record, "a", encoding="utf-8") as file:
                    file.write(f"{what}\n")
            self._number += 1
        finally:
            self._is_watched = True

    def _before(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._is_watched and threading.current_thread() is threading.main_thread():
                self._happens(what)
            return function(*arguments, **options)

        return call

    def _writing(self, function: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not self._is_watched:
                return function(*arguments, **options)
            path = arguments[place] if len(arguments) > place else options["filename"]
            tears = self._torn and self._number == self._last
            self._happens(f"write {path}")
            value = function(*arguments, **options)
            if tears:
                os.truncate(path, os.path.getsize(path) // 2)
                os._exit(KILLED)
            return value

        return call


def watch(part: Part, record: str, last: int | None, torn: bool) -> None:
    """What a run's process does before it begins."""
    import luthier.checkpoints.saver

    del luthier
    Operations(part, Path(record), last, torn).install()


class Cuts:
    """A finished run, its operations, and runs that are ended at each.

    Args:
        workshop: model and data.
        part: the save that is watched.
        kind: of the run, see `trial.KINDS`.
    """

    def __init__(
        self, workshop: trial.Workshop, part: Part = "checkpoint", kind: str = "sft_lora"
    ) -> None:
        self._workshop, self._part, self._kind = workshop, part, kind
        self.straight = workshop.folder / "straight"
        self._begun = workshop.folder / "begun"
        self._record = workshop.folder / "operations"
        step = 2 if part == "checkpoint" else 6
        (ended,) = trial.run(
            self._arguments(self._begun, save_total_limit=3),
            prepare=partial(watch, part, str(self._record), None, False),
        )
        assert ended.exit_code == 0, ended.stderr[-3000:]
        self._begun.rename(self.straight)
        self._begun.mkdir()
        shutil.copytree(self.straight / f"checkpoint-{step}", self._begun / f"checkpoint-{step}")
        self.operations = self._count()

    def _count(self) -> list[str]:
        """What the watched save does, one after the other, when it goes on from what was begun."""
        self._record.unlink(missing_ok=True)
        folder = self._copy()
        (ended,) = trial.run(
            self._arguments(folder),
            prepare=partial(watch, self._part, str(self._record), None, False),
        )
        assert ended.exit_code == 0, ended.stderr[-3000:]
        told = trial.differences(self.straight, folder)
        assert not told, told
        return self._record.read_text(encoding="utf-8").splitlines()

    def points(self) -> list[tuple[int, bool]]:
        """The number of each operation, and whether a file is left half written."""
        whole = [(number, False) for number in range(len(self.operations))]
        torn = [(n, True) for n, what in enumerate(self.operations) if what.startswith("write ")]
        return sorted([*whole, *torn])

    def problems(self, number: int, torn: bool) -> Iterator[str]:
        """What is wrong after a run was ended at an operation; nothing should be."""
        folder = self._copy()
        (cut,) = trial.run(
            self._arguments(folder),
            prepare=partial(watch, self._part, str(self._record), number, torn),
        )
        if cut.exit_code != KILLED:
            yield f"the run was not cut: exit code {cut.exit_code}\n{cut.stderr[-2000:]}"
            return
        (again,) = trial.run(self._arguments(folder))
        if again.exit_code != 0:
            yield f"exit code {again.exit_code}:\n{again.stderr[-2000:]}"
            return
        if "is left out" in again.stderr:
            yield "a checkpoint was published that is not good"
        yield from trial.differences(self.straight, folder)
        yield from (f"{path} is left" for path in folder.glob(".stage-*"))
        yield from (f"{path} is left" for path in folder.glob(".trash-*"))
        shutil.rmtree(folder)

    def _copy(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._workshop.folder, prefix="cut-"))
        shutil.copytree(self._begun, folder, dirs_exist_ok=True)
        shutil.copy(self.straight / "trainer_log.jsonl", folder)
        return folder

    def _arguments(self, folder: Path, **more: object) -> dict[str, Any]:
        return self._workshop.arguments(folder, self._kind, **(LENGTH | more))


def main(words: list[str] | None = None) -> int:
    """Tries all, and says how many of them went well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="checkpoint", choices=("checkpoint", "model"))
    parser.add_argument("--kind", default="sft_lora", choices=trial.KINDS)
    options = parser.parse_args(words)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        cuts = Cuts(trial.stand_alone(Path(folder)), options.part, options.kind)
        points, num_well = cuts.points(), 0
        for number, torn in points:
            told = list(cuts.problems(number, torn))
            num_well += not told
            place = cuts.operations[number].replace(str(folder), "")
            label = f"{'in' if torn else 'before'} {number}: {place}"
            print(f"{'ok' if not told else 'WRONG'}  {label}", *told, sep="\n      ")
    print(f"{num_well} of {len(points)} went well, {time.monotonic() - begun:.0f} s")
    return int(num_well < len(points))


if __name__ == "__main__":
    sys.exit(main())
