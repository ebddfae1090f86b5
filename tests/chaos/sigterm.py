"""runs are asked to stop at any moment, by signals: each saves, says so, and goes on from there

    python -m tests.chaos.sigterm --trials 20

Each trial is a real `luthier train` process of a tiny model with LoRA and dropout that is not due
to save. It gets a signal at a random moment: SIGTERM, SIGINT, SIGHUP or SIGUSR1. In some trials a
second one follows, in some all processes of a run with data workers get it, in some it goes to one
of two ranks, or comes while they evaluate. The exit code must be 75, the checkpoint as it was
written, and no model at the top of the folder. The same command must then end with the losses,
gradient norms, learning rates, weights and optimizer, bit for bit, of a run that nothing happened
to.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from luthier.checkpoints.files import list_checkpoints
from luthier.checkpoints.verify import verify
from tests.chaos import trial

KINDS = (
    "SIGTERM",
    "SIGINT",
    "SIGHUP",
    "SIGUSR1",
    "twice",
    "workers",
    "one of two ranks",
    "in an evaluation",
)

RANKS = {"one of two ranks": 2, "in an evaluation": 2}

MORE: dict[str, dict[str, object]] = {
    "twice": {"save_steps": 5},
    "workers": {"dataloader_num_workers": 2},
    "in an evaluation": {"val_size": 8, "eval_strategy": "steps", "eval_steps": 6},
}

SLOW_STEP = 6
"""The step that takes as long as it must for a second signal to meet it."""


@dataclass
class Outcome:
    """What came of one trial.

    Attributes:
        step: that was gone on from.
        problems: what was not as it shall be.
    """

    step: int = 0
    problems: list[str] = field(default_factory=list)


def try_once(
    workshop: trial.Workshop, folder: Path, expected: Path, kind: str, chance: random.Random
) -> Outcome:
    """Asks a run to stop in one of the `KINDS` of ways, and lets it go on.

    Args:
        workshop: of the tiny model.
        folder: of the run.
        expected: the output folder of a run that nothing happened to, on as many ranks.
        kind: how it is asked.
        chance: decides on the moment.
    """
    outcome, num_ranks = Outcome(), RANKS.get(kind, 1)
    arguments = arguments_of(workshop, folder, kind)
    prepare = {"twice": hold_a_step, "in an evaluation": hold_an_evaluation}.get(kind)
    with trial.started(arguments, num_ranks, prepare) as ranks:
        asked = ranks.processes[chance.randrange(num_ranks)]
        step = {"twice": SLOW_STEP - 1, "in an evaluation": SLOW_STEP}.get(
            kind, chance.randint(1, arguments["max_steps"] - 4)
        )
        while asked.exitcode is None and f"\nstep {step}/" not in ranks.stderr(0):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.05) if prepare is None else 0.5)
        number = getattr(signal, kind, signal.SIGTERM)
        if kind == "workers":
            number = chance.choice([signal.SIGTERM, signal.SIGINT])
            for worker in psutil.Process(asked.pid).children(recursive=True):
                worker.send_signal(number)
        os.kill(asked.pid, number)
        if kind == "twice":
            time.sleep(2.5)
            os.kill(asked.pid, chance.choice([signal.SIGTERM, signal.SIGINT]))
        ended = ranks.wait()
    codes = [each.exit_code for each in ended]
    if codes != [75] * num_ranks:
        outcome.problems.append(f"exit codes {codes}: {ended[0].stderr[-1500:]}")
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        outcome.problems.append("no checkpoint")
        return outcome
    outcome.step = int(checkpoints[-1].name.rpartition("-")[2])
    if kind == "twice" and outcome.step >= SLOW_STEP:
        outcome.problems.append(f"the second signal did not end it before step {outcome.step}")
    if kind != "twice" and outcome.step < step:
        outcome.problems.append(f"asked in step {step}, saved at {outcome.step}")
    if kind == "in an evaluation" and outcome.step != SLOW_STEP:
        outcome.problems.append(f"the evaluation was waited for: saved at {outcome.step}")
    outcome.problems += [str(problem) for problem in verify(checkpoints[-1])]
    if models := list(folder.glob("*.safetensors")):
        outcome.problems.append(f"a model is left: {models}")
    again = trial.run(arguments, num_ranks)
    if again[0].exit_code != 0:
        outcome.problems.append(f"then exit code {again[0].exit_code}: {again[0].stderr[-1500:]}")
        return outcome
    if f"checkpoint-{outcome.step}" not in again[0].stderr:
        outcome.problems.append(f"did not go on from {outcome.step}")
    outcome.problems += trial.differences(expected, folder)
    return outcome


def arguments_of(workshop: trial.Workshop, folder: Path, kind: str) -> dict[str, Any]:
    """A run of 40 steps of 4 examples that saves at its end."""
    common = {"save_steps": 1000, "gradient_accumulation_steps": 2 // RANKS.get(kind, 1)}
    return workshop.arguments(folder, **(common | MORE.get(kind, {})))


def hold_a_step() -> None:
    """Makes one step last until the process is ended."""
    from luthier.training import loop

    plain = loop.train_step

    @functools.wraps(plain)
    def held(learner: Any, *args: Any) -> Any:
        if learner.state.global_step == SLOW_STEP - 1:
            time.sleep(120)
        return plain(learner, *args)

    loop.train_step = held


def hold_an_evaluation() -> None:
    """Makes the evaluations last."""
    from luthier.processes.watchdog import HeartbeatCallback

    def held(self: HeartbeatCallback, *_: Any, **options: Any) -> None:
        time.sleep(1)

    HeartbeatCallback.on_prediction_step = held  # type: ignore[method-assign]


def try_many(
    folder: Path, workshop: trial.Workshop, kinds: Sequence[str], seed: int
) -> list[Outcome]:
    """Tries every kind once."""
    chance, outcomes = random.Random(seed), []
    for number, kind in enumerate(kinds):
        expected = folder / f"expected-{RANKS.get(kind, 1)}{'evaluation' in kind}"
        if not expected.exists():
            alike = kind if kind in RANKS else "SIGTERM"
            trial.run_well(arguments_of(workshop, expected, alike), RANKS.get(kind, 1))
        output = folder / f"trial-{number}"
        outcomes.append(try_once(workshop, output, expected, kind, chance))
        print(
            f"{number}: {kind}; went on from {outcomes[-1].step}: "
            + ("\n    ".join(outcomes[-1].problems[:20]) or "bit-equal")
        )
    return outcomes


def main() -> None:
    """Runs the trials that the command line asks for, and ends with 1 if any has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    kinds = [asked.kinds[number % len(asked.kinds)] for number in range(asked.trials)]
    with tempfile.TemporaryDirectory() as name:
        workshop = trial.stand_alone(Path(name) / "workshop")
        outcomes = try_many(Path(name), workshop, kinds, asked.seed)
    good = sum(not outcome.problems for outcome in outcomes)
    print(f"{good} of {len(outcomes)} runs stop with code 75 and end bit-equal")
    sys.exit(0 if good == len(outcomes) else 1)


if __name__ == "__main__":
    main()
