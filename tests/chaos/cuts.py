"""runs are cut at every step, in every way of training: each ends as if it had not been

    python -m tests.chaos.cuts

A cut is what `luthier stop` does: a checkpoint at the end of the step, and the end of the process.
The same command is given again, and the losses, gradient norms, learning rates, weights and
optimizer must equal, bit for bit, those of a run of 40 steps that was never cut.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.checkpoints.control_files import FOLDER
from tests.chaos import trial

EVERY = tuple(range(1, 40))

FEW = (1, 10, 15, 16, 39)
"""The first and the last, the end of an epoch and those around."""


@dataclass(frozen=True)
class Case:
    """A way of training, and where it is cut.

    Attributes:
        kind: one of `trial.KINDS`.
        more: further arguments.
        steps: the steps at whose ends it is cut.
        num_ranks: processes.
    """

    kind: str
    more: tuple[tuple[str, object], ...] = ()
    steps: Sequence[int] = EVERY
    num_ranks: int = 1


WORKERS = (("dataloader_num_workers", 2),)

CASES = {
    **{kind: Case(kind) for kind in trial.KINDS},
    "two workers": Case("sft_lora", WORKERS, (1, 7, 14, 15, 16, 22, 30, 31, 39)),
    "two workers, streaming": Case("streaming", WORKERS, FEW),
    "bf16": Case("sft_lora", (("bf16", True),), (1, 15, 39)),
    "pure bf16": Case("sft_full", (("pure_bf16", True),), (1, 15, 39)),
    "two ranks": Case("sft_lora", (), FEW, 2),
    "two ranks, streaming": Case("streaming", (), FEW, 2),
    "logged every third step": Case("sft_lora", (("logging_steps", 3),), (1, 2, 3, 16)),
    "evaluated": Case(
        "sft_lora",
        (("val_size", 8), ("eval_strategy", "steps"), ("eval_steps", 5)),
        (4, 5, 14, 15, 39),
    ),
    "evaluated each epoch": Case(
        "sft_lora",
        (
            ("val_size", 8),
            ("eval_strategy", "epoch"),
            ("save_strategy", "epoch"),
            ("logging_strategy", "epoch"),
            ("load_best_model_at_end", True),
        ),
        (1, 12, 13, 14, 39),
    ),
    "shared prefixes": Case("sft_lora", (("lora_dropout", 0.0),), FEW),
    "small micro-batches": Case("sft_lora", (("tokens_per_micro_batch", 64),), FEW),
    "gradient checkpointing": Case("sft_lora", (("gradient_checkpointing", True),), FEW),
    "neftune": Case("sft_lora", (("neftune_noise_alpha", 5.0),), FEW),
    "grouped by length": Case("sft_lora", (("train_sampling_strategy", "group_by_length"),), FEW),
}


def request_at(step: int, output_dir: str) -> None:
    """Has the process find, at a step, what `luthier stop` leaves."""
    from luthier.training import loop

    plain = loop.train_step

    @functools.wraps(plain)
    def asked(learner: Any, *given: Any) -> Any:
        if learner.state.global_step == step - 1 and learner.args.process_index == 0:
            folder = Path(output_dir) / FOLDER
            folder.mkdir(exist_ok=True)
            (folder / "stop").touch()
        return plain(learner, *given)

    loop.train_step = asked


def try_case(
    folder: Path, workshop: trial.Workshop, name: str, steps: Sequence[int] | None = None
) -> list[str]:
    """Cuts a run of one of `CASES` at each of its steps; returns what differs."""
    case = CASES[name]
    more: dict[str, object] = {"save_steps": 1000, **dict(case.more)}
    if case.num_ranks > 1:
        more["gradient_accumulation_steps"] = 1
    place = folder / name.replace(" ", "-").replace(",", "")
    expected = place / "expected"
    trial.run_well(workshop.arguments(expected, case.kind, **more), case.num_ranks)
    told = []
    for step in steps or case.steps:
        output = place / f"cut-{step}"
        arguments = workshop.arguments(output, case.kind, **more)
        cut = trial.run(arguments, case.num_ranks, functools.partial(request_at, step, str(output)))
        codes = [each.exit_code for each in cut]
        if codes != [75] * case.num_ranks:
            told.append(f"{name}, cut at {step}: exit codes {codes}: {cut[0].stderr[-1500:]}")
            continue
        if not (output / f"checkpoint-{step}").is_dir():
            told.append(f"{name}: no checkpoint of step {step}")
        again = trial.run_well(arguments, case.num_ranks)
        if f"checkpoint-{step}" not in again.stderr:
            told.append(f"{name}: did not go on from step {step}")
        told += [f"{name}, cut at {step}: {each}" for each in trial.differences(expected, output)]
    return told


def main() -> None:
    """Runs the cases that the command line asks for, and ends with 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--trials", type=int, help="so many steps of each case, for a quick look")
    asked = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        workshop = trial.stand_alone(Path(name) / "workshop")
        for case in asked.cases:
            begun = time.monotonic()
            steps = CASES[case].steps[: asked.trials]
            told = try_case(Path(name), workshop, case, steps)
            differing += bool(told)
            print(
                f"{case}: {len(steps)} cuts, {time.monotonic() - begun:.0f} s: "
                + ("\n    ".join([f"{len(told)} differences", *told[:20]]) if told else "bit-equal")
            )
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
