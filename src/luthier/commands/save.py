"""`luthier save`: asks a run for a checkpoint."""

from __future__ import annotations

from luthier.checkpoints.control_files import ask, wait_for_answer
from luthier.commands.stop import read_request
from luthier.errors import CheckpointError

SUMMARY = "ask a run for a checkpoint now: luthier save OUTPUT_DIR [--wait]"

USAGE = """\
luthier save OUTPUT_DIR [--wait]

Asks the run that writes to OUTPUT_DIR for a checkpoint at the end of the running step; the run
goes on.

With --wait this ends when the checkpoint is written."""


def run(argv: list[str]) -> int:
    """Asks, and waits if told to."""
    folder, waits = read_request(argv, "save")
    run = ask(folder, "save")
    print(f"asked {run} for a checkpoint")
    if not waits:
        return 0
    found = wait_for_answer(folder, "save")
    if found["checkpoint"] is None:
        raise CheckpointError(
            f"the checkpoint of step {found['step']:,} could not be written; the log of the run "
            "says why."
        )
    print(f"saved: {folder / found['checkpoint']}")
    return 0
