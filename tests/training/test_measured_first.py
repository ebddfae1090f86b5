"""a step that its stage measures without gradient before it is learned, by a reference too"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import luthier
from luthier.example import REFERENCE
from luthier.modeling.reads import read_logps
from luthier.stages.next_token import NextToken
from luthier.stages.stage import Loss
from tests.training import faults

PLAIN = NextToken.loss


class Seen:
    """What the loss was given of each micro-batch."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.distances: list[float] = []
        self.orders: list[str] = []

    def measure(self, stage: Any, model: Any, batch: Any) -> dict[str, Any]:
        assert not torch.is_grad_enabled()
        self.orders.append("measured")
        return {"tokens": (float(batch.num_tokens), 1)}

    def loss(self, stage: Any, model: Any, batch: Any) -> Loss:
        loss = PLAIN(stage, model, batch)
        self.orders.append("learned")
        self.means.append(batch.step_numbers["tokens"])
        with torch.no_grad():
            apart = read_logps(model, batch).logps_N - batch.token_numbers[REFERENCE]
        self.distances.append(apart.abs().max().item())
        return loss


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_is_measured_before_it_is_learned(method: str, llama_folder, tmp_path: Path):
    seen = Seen()
    config = faults.config_of(
        llama_folder,
        faults.write_rows(tmp_path),
        tmp_path / "run",
        finetuning_type=method,
        save_strategy="no",
        val_size=0.25,
        do_eval=True,
        max_steps=3,
    )
    plain = luthier.train(config | {"output_dir": str(tmp_path / "plain")})

    with (
        patch.object(NextToken, "measures_first", True),
        patch.object(NextToken, "needs_reference", True),
        patch.object(NextToken, "measure", lambda *given: seen.measure(*given)),
        patch.object(NextToken, "loss", lambda *given: seen.loss(*given)),
    ):
        result = luthier.train(config)

    assert faults.losses(result) == faults.losses(plain), "nothing is learned while measuring"
    first = seen.orders.index("learned")
    assert seen.orders[:first] == ["measured"] * first
    assert seen.orders[first : 2 * first] == ["learned"] * first
    assert len(set(seen.means[:first])) == 1, "a mean over the whole step"
    assert max(seen.distances[:first]) < 1e-4, "the model has not learned yet"
    assert seen.distances[-1] > 1e-2, "the reference stays behind"
