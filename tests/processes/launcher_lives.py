"""a launcher with processes that only live and die: python -m tests.processes.launcher_lives"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

RANK = """
import os, signal, sys, time
from pathlib import Path
deed, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
asked = []
for name in ("SIGTERM", "SIGINT"):
    signal.signal(getattr(signal, name), lambda number, frame: asked.append(number))
(folder / f"{deed}-{attempt}-{rank}").touch()
if deed == "well":
    sys.exit(0)
if deed == "mistake":
    sys.exit(2)
if deed == "once" and attempt == 0 and rank == 1:
    sys.exit(1)
if deed == "once" and attempt == 1:
    sys.exit(0)
if deed == "killed" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while not asked:
    time.sleep(0.01)
if deed == "deaf":
    time.sleep(600)
if deed == "stopped":
    time.sleep(0.3)  # as if it saved
    (folder / f"saved-{signal.Signals(asked[0]).name}-{rank}").touch()
    sys.exit(75)
"""
"""What a process does, by its first word; each leaves a file that says that it lived."""


def run(folder: Path, deed: str, max_restarts: int = 0, signals: int = 0) -> int:
    """The exit code of a launcher of two processes, which gets signals once both live."""
    from luthier.processes.agent import run_agent

    script = folder / "a rank.py"
    script.write_text(RANK)

    def ask() -> None:
        while len(list(folder.glob(f"{deed}-0-*"))) < 2:
            time.sleep(0.01)
        for _ in range(signals):
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGHUP if signals == 1 else signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    restarts = ["--max-restarts", str(max_restarts)]
    return run_agent([*options, *restarts, "--", str(script), deed, str(folder)])


def main(folder: Path) -> None:
    """Prints the exit code of each life."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    codes = {
        "well": run(folder, "well"),
        "mistake": run(folder, "mistake", max_restarts=2),
        "once": run(folder, "once", max_restarts=2),
        "killed": run(folder, "killed"),
        "stopped": run(folder, "stopped", max_restarts=2, signals=1),
        "deaf": run(folder, "deaf", signals=3),
    }
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    print(json.dumps(codes))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(Path(sys.argv[1]))
