"""What is asked of a run by files in its folder: to save, or to save and stop."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from luthier.checkpoints.lock import Holder, holder
from luthier.errors import CheckpointError

FOLDER = ".requests"

TAKEN, ANSWERED = ".taken", ".answered"

LOOK_EVERY_S = 0.2

Word: TypeAlias = Literal["save", "stop"]

WORDS: tuple[Word, ...] = ("save", "stop")


def ask(output_dir: Path, word: Word) -> Holder:
    """Asks the run that writes to a folder, and says which it is, if one does."""
    if not output_dir.is_dir():
        raise CheckpointError(
            f"{output_dir} is no folder. Name the output_dir of a run that is going on."
        )
    run = holder(output_dir)
    if run is None:
        raise CheckpointError(
            f"no run is going on in {output_dir}, so there is nothing to {word}. "
            f"`luthier checkpoints list {output_dir}` shows what is there."
        )
    folder = output_dir / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / (word + ANSWERED)).unlink(missing_ok=True)
    aside = folder / f".{word}.{os.getpid()}"
    aside.write_text(json.dumps({"pid": os.getpid(), "time": time.time()}) + "\n", encoding="utf-8")
    aside.replace(folder / word)
    return run


def wait_for_answer(output_dir: Path, word: Word) -> dict[str, Any]:
    """What the run did about a request, once it has; for `stop` once the run has ended.

    Returns:
        The `step` and the `checkpoint`, None where it could not be written; {} when a run that was
        to stop ended by itself.

    Raises:
        CheckpointError: if the run ended before it could save.
    """
    file = output_dir / FOLDER / (word + ANSWERED)
    while True:
        is_running = holder(output_dir) is not None
        if not is_running or word == "save":
            try:
                values: dict[str, Any] = json.loads(file.read_bytes())
                return values
            except FileNotFoundError:
                if not is_running and word == "stop":
                    return {}
                if not is_running:
                    raise CheckpointError(
                        f"the run in {output_dir} ended before it could {word}. "
                        f"`luthier checkpoints list {output_dir}` shows what it left."
                    ) from None
        time.sleep(LOOK_EVERY_S)


def asked(output_dir: Path) -> set[Word]:
    """What is asked and not yet taken up."""
    try:
        present = set(os.listdir(output_dir / FOLDER))
    except FileNotFoundError:
        return set()
    return {word for word in WORDS if word in present}


def take_up(output_dir: Path, word: Word) -> None:
    """Notes that the run is about to do what is asked."""
    file = output_dir / FOLDER / word
    file.replace(file.with_name(word + TAKEN))


def answer(output_dir: Path, values: Mapping[str, Any]) -> None:
    """Tells those who asked what was done; nothing happens when nobody did."""
    for word in WORDS:
        file = output_dir / FOLDER / (word + TAKEN)
        if file.exists():
            file.write_text(json.dumps(values) + "\n", encoding="utf-8")
            file.replace(file.with_name(word + ANSWERED))


def forget_requests(output_dir: Path) -> None:
    """Drops what was asked of an earlier run; for a run that has just taken the folder's lock."""
    shutil.rmtree(output_dir / FOLDER, ignore_errors=True)


def was_stopped(output_dir: Path) -> bool:
    """Whether a run was asked to stop by a file, and did or has still to do it."""
    return any((output_dir / FOLDER / ("stop" + end)).exists() for end in ("", TAKEN, ANSWERED))
