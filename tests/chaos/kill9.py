"""runs are killed at any moment, many inside a save: each goes on as if it had not been

    python -m tests.chaos.kill9 --trials 50

Each trial is a real `luthier train` process of a tiny model with LoRA and dropout that saves every
two steps. It is killed by SIGKILL, and the same command is given again, which is sometimes killed,
too. Then every checkpoint must be as it was written, the run must go on from the newest, and the
losses, gradient norms, learning rates, weights and optimizer must equal, bit for bit, those of a
run that nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.checkpoints.files import LEFTOVER
from luthier.checkpoints.verify import newest_valid, verify
from tests import launched
from tests.chaos import trial

AIMS = {"start": 1, "step": 3, "save": 5, "end": 1}
"""Where kills are aimed, and how often: before the first step, at a step, in a save, behind the
last step."""

AGAIN = 0.25
"""The share of kills after which the run that goes on is killed, too."""

SAVE_S = 0.04
"""About the length of a save here, in which kills aimed at one are spread."""


@dataclass
class Outcome:
    """What came of one trial.

    Attributes:
        kills: where each landed: "start", "step", "save", "end", or "late" for a run that was over.
        resumed: the steps that were gone on from.
        problems: what was not as it shall be.
    """

    kills: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def try_once(
    arguments: dict[str, Any], expected: Path, chance: random.Random, aim: str, *, is_cold: bool
) -> Outcome:
    """Kills a run once or more, and lets it end.

    Args:
        arguments: of the run.
        expected: the output folder of a run that nothing happened to.
        chance: decides on the moments.
        aim: about where to kill, one of `AIMS`.
        is_cold: whether the last run is a new interpreter, not one forked from a warm one.
    """
    folder, outcome = Path(arguments["output_dir"]), Outcome()
    while not outcome.kills or (chance.random() < AGAIN and outcome.kills[-1] != "late"):
        outcome.kills.append(kill_once(arguments, chance, aim))
        for checkpoint in sorted(folder.glob("checkpoint-*")):
            for problem in verify(checkpoint):
                outcome.problems.append(f"{checkpoint.name}: {problem}")
        newest = newest_valid(folder)
        outcome.resumed.append(0 if newest is None else int(newest.name.rpartition("-")[2]))
    ended = run_cold(arguments) if is_cold else trial.run(arguments)[0]
    if ended.exit_code != 0:
        outcome.problems.append(f"exit code {ended.exit_code}: {ended.stderr[-1500:]}")
        return outcome
    found = re.search(r"going on from \S*checkpoint-(\d+)", ended.stderr)
    begun = int(found[1]) if found else 0
    is_over = "nothing to train" in ended.stderr or "only the model" in ended.stderr
    if not is_over and begun != outcome.resumed[-1]:
        outcome.problems.append(f"went on from {begun}, not from {outcome.resumed[-1]}")
    if left := [path.name for path in folder.iterdir() if LEFTOVER.fullmatch(path.name)]:
        outcome.problems.append(f"left behind: {left}")
    outcome.problems += trial.differences(expected, folder)
    return outcome


def kill_once(arguments: dict[str, Any], chance: random.Random, aim: str) -> str:
    """Starts the run and kills it; says where it was."""
    folder = Path(arguments["output_dir"])
    with trial.started(arguments) as ranks:
        (process,) = ranks.processes
        if aim == "start":
            time.sleep(chance.uniform(0, 2))
        elif aim == "save":
            for _ in range(chance.randint(1, arguments["max_steps"] // 3)):
                wait_for(process, lambda: has_stage(folder))
                wait_for(process, lambda: not has_stage(folder))
            wait_for(process, lambda: has_stage(folder))
            time.sleep(chance.uniform(0, SAVE_S))
        else:
            last = arguments["max_steps"]
            step = last if aim == "end" else chance.randint(1, last - 1)
            wait_for(process, lambda: f"\nstep {step}/" in ranks.stderr(0))
            time.sleep(chance.uniform(0, 0.5 if aim == "end" else 0.05))
        said = ranks.stderr(0)
        process.kill()
        ended = ranks.wait()[0]
    if ended.exit_code != -signal.SIGKILL:
        return "late"
    if has_stage(folder):
        return "save"
    if "train_runtime" in said:
        return "end"
    return "step" if re.search(r"^step \d+/", said, re.MULTILINE) else "start"


def has_stage(folder: Path) -> bool:
    """Whether a save or a deletion is under way, or was cut off."""
    try:
        return any(LEFTOVER.fullmatch(name) for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def wait_for(process: Any, is_so: Any) -> None:
    """Waits until something is so, or the process is over."""
    while process.exitcode is None and not is_so():
        time.sleep(0.0005)


def run_cold(arguments: dict[str, Any]) -> launched.Ended:
    """The run in a new interpreter, whose strings hash to other numbers."""
    words = [sys.executable, "-m", "luthier", *trial.words_of(arguments)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=launched.TIMEOUT_S)
    return launched.Ended(ended.returncode, None, ended.stdout, ended.stderr)


def try_many(
    folder: Path, workshop: trial.Workshop, aims: Sequence[str], num_cold: int, seed: int
) -> list[Outcome]:
    """Tries every aim once; the last ones cold."""
    expected = folder / "expected"
    trial.run_well(workshop.arguments(expected))
    chance, outcomes = random.Random(seed), []
    for number, aim in enumerate(aims):
        is_cold = number >= len(aims) - num_cold
        arguments = workshop.arguments(folder / f"trial-{number}")
        outcome = try_once(arguments, expected, chance, aim, is_cold=is_cold)
        outcomes.append(outcome)
        cold = ", cold" if is_cold else ""
        print(
            f"{number}: killed at {', '.join(outcome.kills)}; went on from "
            f"{', '.join(map(str, outcome.resumed))}{cold}: "
            + ("\n    ".join(outcome.problems[:20]) or "bit-equal")
        )
    return outcomes


def main() -> None:
    """Runs the trials that the command line asks for, and ends with 1 if any has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--cold", type=int, default=5, help="trials that end in a new interpreter")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    aims = chance.choices(list(AIMS), AIMS.values(), k=asked.trials)
    with tempfile.TemporaryDirectory() as name:
        workshop = trial.stand_alone(Path(name) / "workshop")
        outcomes = try_many(Path(name), workshop, aims, asked.cold, asked.seed)
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    good = sum(not outcome.problems for outcome in outcomes)
    counts = ", ".join(f"{kills.count(kind)} {kind}" for kind in sorted(set(kills)))
    print(f"{good} of {len(outcomes)} runs end bit-equal after {len(kills)} kills: {counts}")
    sys.exit(0 if good == len(outcomes) else 1)


if __name__ == "__main__":
    main()
