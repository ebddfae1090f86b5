"""what of a schedule follows from the number of steps"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.training.optimizers.make import make_schedule
from tests.stages.made import make_arguments


def rates(num_steps: int, kind: str, **settings: Any) -> list[float]:
    """The share of the learning rate of each step."""
    arguments = make_arguments("sft", lr_scheduler_type=kind, **settings)
    args: Any = SimpleNamespace(
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=None,
        get_warmup_steps=lambda steps: args.warmup_steps,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, num_steps, arguments, args)
    found = []
    for _ in range(num_steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_a_share_of_the_steps_warms_up(capsys: pytest.CaptureFixture[str]):
    found = rates(20, "constant_with_warmup", warmup_ratio=0.25)

    assert found[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert set(found[5:]) == {1.0}
    assert "warmup_steps = 5" in capsys.readouterr().err


def test_two_thirds_behind_the_warm_up_decay(capsys: pytest.CaptureFixture[str]):
    found = rates(32, "warmup_stable_decay", warmup_steps=2)

    assert found[2:13] == [1.0] * 11
    assert all(one > other for one, other in pairwise(found[12:]))
    assert "10 stable steps and 20 of decay" in capsys.readouterr().err
