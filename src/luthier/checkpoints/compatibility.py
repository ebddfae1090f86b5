"""How a run differs from the checkpoint that it would go on from, and whether it may.

What each argument may become is a fact of its knob, see `arguments/knob.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from luthier.arguments.choices import SCHEDULES, Schedule
from luthier.arguments.record import facts, fields
from luthier.checkpoints.files import deepspeed_parts, holds_states
from luthier.checkpoints.manifest import Manifest

FORMS = {"zero0": 0, "zero1": 2, "zero2": 2, "zero3": 3}
"""The form of DeepSpeed's optimizer states by strategy; all others read each other's."""

PARTED = frozenset(("zero1", "zero2", "zero3"))
"""Strategies whose checkpoints have a part for each rank, read by as many."""


@dataclass
class Changes:
    """How a run differs from a checkpoint."""

    fixed: list[str] = field(default_factory=list)  # `name: then, now` for what no run can change
    learned: list[str] = field(default_factory=list)  # the same for what changes what is learned
    notes: list[str] = field(default_factory=list)  # what is as good as it was, but worth a line

    def problem(self, checkpoint: Path, *, are_allowed: bool) -> str | None:
        """What speaks against going on, by `resume_allow_changes`; None when nothing does."""
        listed = [*self.fixed, *([] if are_allowed else self.learned)]
        if not listed:
            return None
        remedies = ["set them back to go on", "overwrite_output_dir: true for a new run"]
        if not self.fixed:
            remedies.insert(1, "resume_allow_changes: true to go on all the same")
        return "\n".join(
            [
                f"{checkpoint} was made by another run than this one would be:",
                *(f"    {line}" for line in listed),
                f"  Either {', or '.join(remedies)}.",
            ]
        )


def compare_settings(manifest: Manifest, settings: Mapping[str, Any]) -> Changes:
    """How the arguments differ, as far as they say it."""
    found, lengths = Changes(), []
    then, now = (
        SimpleNamespace(**(dict.fromkeys(fields()) | dict(values)))
        for values in (manifest.settings, settings)
    )
    schedules = [SCHEDULES.get(each.lr_scheduler_type, Schedule()) for each in (then, now)]
    for name in sorted(manifest.settings.keys() & settings.keys()):
        before, after = manifest.settings[name], settings[name]
        resume = facts()[name].resume if name in facts() else "learned"
        is_same = _last_names(before) == _last_names(after) if resume == "path" else before == after
        if is_same or resume == "elsewhere":
            continue
        is_fixed = {
            "fixed": True,
            "schedule": any(each.acts_on_evaluations for each in schedules),
            "groups": None in (before, after),
            "best": None not in (then.metric_for_best_model, now.metric_for_best_model),
            "half": manifest.strategy in FORMS,
        }.get(resume, False)
        line = _line(name, before, after)
        if resume == "length":
            lengths.append(line)
        elif is_fixed:
            found.fixed.append(line)
        elif resume not in ("free", "best"):
            found.learned.append(line)
    do_epochs_count = now.max_steps <= 0 or then.max_steps != now.max_steps
    warms_by_share = 0 < now.warmup_steps < 1 if now.warmup_steps else bool(now.warmup_ratio)
    looks_at_end = schedules[1].looks_at_end or warms_by_share
    if lengths and do_epochs_count and looks_at_end:
        found.notes.append(
            f"{', '.join(lengths)}. The learning rate ({now.lr_scheduler_type}) follows the new "
            "number of steps from here on, so its curve is not that of a run of this length."
        )
    return found


def compare(manifest: Manifest, now: Manifest) -> Changes:
    """How a run differs from a checkpoint in all that counts."""
    found = compare_settings(manifest, now.settings)
    was = manifest
    # a stream compares its state itself, and says what is another
    rows = was.data.get("rows"), now.data.get("rows")
    if None not in rows and was.data["fingerprint"] != now.data["fingerprint"]:
        found.learned.append(
            f"the encoded training data: {rows[0]:,} rows then, {rows[1]:,} now, of other content "
            "or in another order"
        )
    if was.examples_per_step != now.examples_per_step:
        found.learned.append(
            _line("examples of a step", was.examples_per_step, now.examples_per_step)
            + " (per_device_train_batch_size x gradient_accumulation_steps x processes)"
        )
    if any(name.startswith("rng_state") for name in was.files):
        _compare_states(was.strategy, was.world_size, now, found)
    if was.world_size != now.world_size and not found.fixed:
        same = was.examples_per_step == now.examples_per_step
        found.notes.append(
            _line("processes", was.world_size, now.world_size)
            + (". The examples of each step are the same; r" if same else ". R")
            + "andom numbers such as those of dropout are others."
        )
    return found


def compare_files(checkpoint: Path, now: Manifest) -> Changes:
    """How a run differs from a checkpoint of another program, as far as its files say it."""
    found = Changes()
    if holds_states(checkpoint):
        was = deepspeed_parts(checkpoint) or "ddp"
        _compare_states(was, now.world_size, now, found)
    return Changes(fixed=found.fixed)


def _compare_states(was: str, was_world_size: int, now: Manifest, found: Changes) -> None:
    held = _line("how weights are held", was, now.strategy)
    if FORMS.get(was) != FORMS.get(now.strategy):
        found.fixed.append(f"{held}; neither reads the optimizer states of the other")
    elif _kind(was) != _kind(now.strategy):
        found.learned.append(held)
    elif was in PARTED and was_world_size != now.world_size:
        found.fixed.append(
            _line("processes", was_world_size, now.world_size)
            + "; DeepSpeed keeps a part of the optimizer for each"
        )


def _line(name: str, before: Any, now: Any) -> str:
    return f"{name}: {before!r} then, {now!r} now"


def _last_names(value: Any) -> list[str]:
    """The last part of each path, which stays when a folder moves."""
    values = value if isinstance(value, list) else [value]
    return [Path(str(each)).name for each in values if each is not None]


def _kind(strategy: str) -> str:
    kinds = {"single": "whole", "ddp": "whole", "zero1": "zero2"}
    return kinds.get(strategy, strategy)
