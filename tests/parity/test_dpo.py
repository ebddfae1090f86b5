"""ten steps of stage dpo are those of trl's trainer, where its batches are whole steps"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.by_trl import assert_same, train_ours, train_theirs
from tests.stages.test_dpo import config_of


@pytest.mark.parametrize(
    ("loss", "ld_alpha"), [("sigmoid", None), ("ipo", None), ("sigmoid", 0.5), ("aot", None)]
)
def test_losses_and_rewards_are_those_of_trl(
    loss: str, ld_alpha: float | None, llama_folder: Path, tmp_path: Path
):
    asked = {"pref_beta": 0.3, "pref_loss": loss, "ld_alpha": ld_alpha}
    config = config_of(llama_folder, tmp_path, learning_rate=5e-3, **asked)

    ours, _ = train_ours(config)
    theirs, _ = train_theirs(config, llama_folder, beta=0.3, loss_type=[loss], ld_alpha=ld_alpha)

    assert ours[-1]["rewards/margins"] > 0.05, "something was learned"
    sides = "chosen", "rejected"
    names = [f"{of}/{side}" for of in ("rewards", "logps", "logits") for side in sides]
    assert_same(ours, theirs, "loss", "grad_norm", "rewards/margins", *names)
