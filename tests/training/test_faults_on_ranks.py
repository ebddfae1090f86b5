"""two ranks, one of which meets a bad number or has no memory left: both do the same thing then"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.launched import values_of_ranks
from tests.training import faults

pytestmark = pytest.mark.slow  # eight runs of two processes


class SpoiledGradient(TrainerCallback):
    """On one rank, the gradient of one parameter becomes NaN in one step."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def on_train_begin(self, args, state, control, model=None, **others):
        weight = next(each for each in model.parameters() if each.requires_grad)

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            is_now = state.global_step + 1 == self.step and args.process_index == self.rank
            return gradient * math.nan if is_now else gradient

        weight.register_hook(spoil)


def bad_loss(step: int, rank: int):
    """A loss of one rank that is infinite, with a finite gradient."""

    def change(loss, batch, now):
        is_here = now == step and dist.get_rank() == rank and batch.num_tokens > 0
        return replace(loss, total=loss.total + math.inf) if is_here else loss

    return change


class NoMemory(TrainerCallback):
    """One rank has room for `above` tokens in a forward pass from a step on."""

    def __init__(self, step: int, rank: int, above: int) -> None:
        self.step, self.rank, self.above = step, rank, above

    def on_train_begin(self, args, state, control, model=None, **others):
        def check(module, positional, named):
            is_now = state.global_step + 1 >= self.step and args.process_index == self.rank
            if is_now and module.training and named["input_ids"].numel() > self.above:
                raise torch.OutOfMemoryError(faults.TOO_MUCH)

        inner = model.module if hasattr(model, "module") else model
        inner.register_forward_pre_hook(check, with_kwargs=True)


def as_it_is(loss, batch, now):
    return loss


def ended(config: dict[str, Any], change=as_it_is, callbacks=()) -> dict[str, Any]:
    """How a run of this rank ended."""
    from luthier.errors import LuthierError

    try:
        result = faults.train(config, change, callbacks)
    except LuthierError as problem:
        return {"exit_code": problem.exit_code, "told": str(problem)}
    dist.barrier()
    weights = {n: p.detach() for n, p in result.model.named_parameters() if p.requires_grad}
    return {"losses": faults.losses(result), "weights": weights, "metrics": result.metrics}


def runs(config: dict[str, Any], folder: str) -> dict[str, dict[str, Any]]:
    """Several runs, one after the other in the same group."""
    dist.init_process_group("gloo")
    found = {}

    def run(name: str, *args: Any, **settings: Any) -> None:
        found[name] = ended(config | {"output_dir": f"{folder}/{name}"} | settings, *args)
        dist.barrier()

    run("whole")
    run("whole, one micro-batch", tokens_per_micro_batch=1000)
    run("memory", as_it_is, [NoMemory(3, 1, above=45)])
    run(
        "memory, one micro-batch", as_it_is, [NoMemory(3, 1, above=70)], tokens_per_micro_batch=1000
    )
    run(
        "memory, resumed",
        as_it_is,
        [NoMemory(9, 1, above=45)],
        resume_from_checkpoint=f"{folder}/memory/checkpoint-5",
    )
    run("loss", bad_loss(4, 1))
    run("gradient", as_it_is, [SpoiledGradient(4, 1)])
    run("skipped", bad_loss(4, 1), on_nonfinite="skip")
    return found


@pytest.fixture(scope="module")
def config(llama_folder, tmp_path_factory) -> dict[str, Any]:
    rows = faults.write_rows(tmp_path_factory.mktemp("rows"))
    return faults.config_of(llama_folder, rows, Path("unused"), lora_dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(config, folder) -> list[dict[str, dict[str, Any]]]:
    """By rank."""
    return values_of_ranks(runs, 2, config, str(folder))


def assert_saved_is_finite(folder: Path, last: int) -> None:
    steps = sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))
    assert steps[-1] == last
    for file in folder.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file


@pytest.mark.parametrize("suffix", ["", ", one micro-batch"])
def test_a_rank_without_memory_computes_its_share_in_smaller_pieces(found, suffix):
    for rank in found:
        whole, short = rank[f"whole{suffix}"], rank[f"memory{suffix}"]
        assert short["losses"] == pytest.approx(whole["losses"], abs=1e-5)
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(short["weights"][name], weight, rtol=1e-3, atol=1e-5)
    pieces = "train_micro_batches_per_step"
    assert found[0][f"memory{suffix}"]["weights"].keys()
    for name in found[0]["whole"]["weights"]:
        torch.testing.assert_close(
            found[0][f"memory{suffix}"]["weights"][name],
            found[1][f"memory{suffix}"]["weights"][name],
            rtol=0,
            atol=0,
        )
    assert pieces in found[0][f"memory{suffix}"]["metrics"]


def test_each_rank_takes_its_limit_up_again(found):
    assert found[0]["memory, resumed"]["losses"] == found[0]["memory"]["losses"]


def test_a_loss_of_one_rank_ends_all_of_them_in_its_step(found, folder):
    for rank in found:
        end = rank["loss"]
        assert end["exit_code"] == 65
        assert "step 4 gives numbers that are not finite" in end["told"]
        assert "rank 1: the loss of micro-batch 1 of " in end["told"]
        assert "rank 0" not in end["told"]
        assert "rows.jsonl:" in end["told"]
    assert_saved_is_finite(folder / "loss", last=3)


def test_a_gradient_of_one_rank_ends_all_of_them_in_its_step(found, folder):
    for rank in found:
        end = rank["gradient"]
        assert end["exit_code"] == 65
        assert "step 4 gives numbers that are not finite" in end["told"]
        assert "rank 1: micro-batch 1 of " in end["told"]
        assert "a gradient that is not: base_model" in end["told"]
        assert "rank 0" not in end["told"]
        assert "rows.jsonl:" in end["told"]
    assert_saved_is_finite(folder / "gradient", last=3)


def test_ranks_leave_the_same_step_out(found, folder):
    first, second = (rank["skipped"] for rank in found)
    assert math.isnan(first["losses"][3])
    assert math.isfinite(sum(first["losses"][:3] + first["losses"][4:]))
    assert first["metrics"]["train_skipped_steps"] == 1
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    before, after = (
        load_file(folder / f"skipped/checkpoint-{step}/adapter_model.safetensors")
        for step in (3, 4)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
