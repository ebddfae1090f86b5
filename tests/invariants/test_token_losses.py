"""losses of tokens: no number depends on how a step is cut, laid out, shared by ranks or resumed"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import luthier
from luthier.errors import LuthierError
from luthier.losses.tokens import TOKEN_LOSSES
from tests.invariants.ways import WAYS
from tests.launched import values_of_ranks
from tests.training import faults

SGD = {"optim": "sgd", "learning_rate": 20.0}
"""Adam would move weights of tiny gradients by the sign of what rounding leaves of them."""

PACKED = {"packing": True, "per_device_train_batch_size": 8}

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.1},
    "head": {"lora_target": "q_proj,lm_head"},
    "whole head": {"additional_target": "lm_head"},
    "pissa": {"pissa_init": True},
    "full": {"finetuning_type": "full"},
}


def lines(result: Any) -> list[list[float]]:
    """What was logged of steps and evaluations."""
    names = ("loss", "grad_norm", "eval_loss")
    found = [[log[n] for n in names if n in log] for log in result.log_history]
    return [each for each in found if each]


def config_of(llama_folder: Path, folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    rows = faults.write_rows(folder)
    changes = {f"use_{name}_loss": True, "save_strategy": "no", "max_steps": 3, **SGD, **settings}
    evaluated = {
        "val_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "overwrite_output_dir": settings.get("save_strategy") != "steps",
    }
    return faults.config_of(llama_folder, rows, folder / "run", **evaluated, **changes)


@pytest.fixture(scope="module", params=TOKEN_LOSSES)
def config(
    request: pytest.FixtureRequest, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return config_of(llama_folder, tmp_path_factory.mktemp("run"), request.param, asft_alpha=1.0)


@pytest.fixture(scope="module")
def whole(config: dict[str, Any]) -> list[list[float]]:
    return lines(luthier.train(config))


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_cut(way: str, config, whole):
    found = lines(luthier.train(config | WAYS[way]))

    assert [len(each) for each in found] == [2, 2, 2, 1, 1]
    for mine, theirs in zip(found, whole, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_anchored_to_what_it_was(method: str, llama_folder: Path, tmp_path: Path):
    """The divergence is 0 at first, and holds the model back from then on."""
    settings = METHODS[method] | PACKED
    losses = [
        lines(luthier.train(config_of(llama_folder, tmp_path, name, asft_alpha=10.0, **settings)))
        for name in ("dft", "asft")
    ]

    (dft, *free), (asft, *held) = losses
    assert asft == pytest.approx(dft, abs=1e-5)
    for mine, theirs in zip(held, free, strict=True):
        assert mine != pytest.approx(theirs, rel=1e-3)


def test_a_run_that_goes_on_is_held_against_the_first_model(llama_folder: Path, tmp_path: Path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_training_stop |= state.global_step == 2

    saved = {"save_strategy": "steps", "save_steps": 2, "finetuning_type": "full"}
    config = config_of(llama_folder, tmp_path, "asft", **saved)
    whole = lines(luthier.train(config | {"output_dir": str(tmp_path / "whole")}))
    luthier.train(config, callbacks=[Stop()])

    resumed = luthier.train(config | {"resume_from_checkpoint": str(tmp_path / "run/checkpoint-2")})

    assert lines(resumed) == whole


def on_this_rank(config: dict[str, Any], settings: list[dict[str, Any]]) -> list[Any]:
    found: list[Any] = []
    for each in settings:
        try:
            found.append(lines(luthier.train(config | each)))
        except LuthierError as problem:
            found.append(str(problem))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [{}, {"fsdp": "full_shard"}, {"deepspeed": {"zero_optimization": {"stage": 3}}}]
)
def test_ranks_are_anchored_as_one_is(way: dict[str, Any], llama_folder: Path, tmp_path: Path):
    config = config_of(llama_folder, tmp_path, "asft", max_grad_norm=0)
    two = config | way | {"output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": 2}
    refused = [{"finetuning_type": "full"}, METHODS["head"]] if "fsdp" in way else []

    learned, *others = values_of_ranks(on_this_rank, 2, two, [{}, *refused])[0]

    for mine, theirs in zip(learned, lines(luthier.train(config)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    if others:
        assert "no copy of the first weights is held" in others[0]
        assert "precompute_ref" not in others[0]
        assert "Leave the head out" in others[1]
