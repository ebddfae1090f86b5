"""ten steps of stage kto are those of trl's trainer, where its batches are whole steps"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.by_trl import assert_same, train_ours, train_theirs
from tests.stages.test_kto import config_of


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_losses_rewards_and_kl_are_those_of_trl(loss: str, llama_folder: Path, tmp_path: Path):
    config = config_of(
        llama_folder,
        tmp_path,
        learning_rate=5e-3,
        pref_beta=0.3,
        kto_loss=loss,
        kto_chosen_weight=0.8,
        kto_rejected_weight=1.2,
    )

    ours, _ = train_ours(config)
    theirs, _ = train_theirs(
        config,
        llama_folder,
        beta=0.3,
        loss_type=loss,
        desirable_weight=0.8,
        undesirable_weight=1.2,
    )

    assert abs(ours[-1]["rewards/chosen"]) > 0.05, "something was learned"
    names = [f"{of}/{side}" for of in ("rewards", "logps") for side in ("chosen", "rejected")]
    names += ["kl"] if loss == "kto" else []
    assert_same(ours, theirs, "loss", "grad_norm", "rewards/margins", *names)
