"""`luthier stop`: asks a run to save and stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.checkpoints.control_files import Word, ask, wait_for_answer
from luthier.errors import ArgumentsError, CheckpointError

SUMMARY = "ask a run to save and stop: luthier stop OUTPUT_DIR [--wait]"

USAGE = """\
luthier stop OUTPUT_DIR [--wait]

Asks the run that writes to OUTPUT_DIR to write a checkpoint at the end of the running step and to
end, with exit code 75. The same command that started it goes on from there.

With --wait this ends when the run has ended."""


def run(argv: list[str]) -> int:
    """Asks, and waits if told to."""
    folder, waits = read_request(argv, "stop")
    run = ask(folder, "stop")
    print(f"asked {run} to save and stop")
    if not waits:
        return 0
    found = wait_for_answer(folder, "stop")
    if not found:
        print(f"the run in {folder} has ended by itself")
    elif found["checkpoint"] is None:
        raise CheckpointError(
            f"the run has ended after step {found['step']:,}, but its checkpoint could not be "
            "written. Its log says why, and which one it goes on from."
        )
    else:
        print(f"stopped after step {found['step']:,}: {folder / found['checkpoint']}")
    return 0


def read_request(argv: Sequence[str], word: Word) -> tuple[Path, bool]:
    """The folder that a command names, and whether it is to wait for the answer."""
    words = [each for each in argv if each != "--wait"]
    if len(words) != 1 or words[0].startswith("-"):
        raise ArgumentsError(
            [f"expected one folder, found {' '.join(words) or 'none'}: luthier {word} OUTPUT_DIR"]
        )
    return Path(words[0]).expanduser(), "--wait" in argv
