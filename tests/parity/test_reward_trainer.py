"""ten steps of stage rm are those of trl's RewardTrainer, and so are the weights behind them"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from tests.parity.by_trl import OURS, PER_STEP, STEPS, assert_same, train_ours, train_theirs
from tests.stages.made import short_run
from tests.stages.test_rm import METRICS, make_rows


@pytest.mark.parametrize("centering", [None, 0.05])
@pytest.mark.parametrize("has_margins", [False, True])
def test_ten_steps_are_those_of_trl(centering, has_margins, llama_folder: Path, tmp_path: Path):
    rows: list[dict[str, Any]] = [*make_rows(STEPS * PER_STEP, 5)]
    for number, row in enumerate(rows):
        row |= {"margin": number % 3 / 2} if has_margins else {}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    config = short_run(
        llama_folder,
        tmp_path,
        "rm",
        file,
        learning_rate=1e-3,
        center_rewards_coefficient=centering,
    )
    untrained = OURS | {"learning_rate": 0.0, "max_steps": 1, "output_dir": str(tmp_path / "start")}
    start = luthier.train(config | untrained).output_dir

    ours, mine = train_ours(config)
    theirs, model = train_theirs(config, start, center_rewards_coefficient=centering)

    assert_same(ours, theirs, "loss", "grad_norm", *METRICS)
    weights = dict(mine.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
