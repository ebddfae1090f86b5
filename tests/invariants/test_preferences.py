"""preferences: no number depends on how a step is cut, laid out, shared by ranks or resumed"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import TrainerCallback

import luthier
from luthier.stages.stage import STAGES
from tests.invariants.ways import WAYS
from tests.launched import values_of_ranks
from tests.stages import test_dpo, test_kto
from tests.training.faults import full_above

ACCURACY = "rewards/accuracies"

NAMES = (
    "loss",
    "grad_norm",
    "kl",
    *(f"{of}/{kind}" for of in ("rewards", "logps", "logits") for kind in ("chosen", "rejected")),
    ACCURACY,
    "rewards/margins",
    "sft_loss",
    "odds_ratio_loss",
)

CASES: dict[str, dict[str, Any]] = {
    "kto": {"stage": "kto", "pref_ftx": 0.1, "kto_rejected_weight": 1.5},
    "dpo": {"stage": "dpo", "pref_loss": "sigmoid,ipo", "pref_loss_weights": "1,0.01"},
    "dpo, all but coupled": {
        "stage": "dpo",
        "pref_loss": "sigmoid,sft,sigmoid_norm",
        "pref_bco_weight": 0.5,
        "pref_ftx": 0.1,
        "ld_alpha": 0.5,
    },
    "dpo, coupled": {
        "stage": "dpo",
        "pref_loss": "kto_pair,aot,aot_unpaired,sft",
        "pref_bco_weight": 0.5,
    },
    "dpo without a reference": {"stage": "dpo", "pref_loss": "orpo,simpo"},
}

SGD = {"optim": "sgd", "learning_rate": 2.0}
"""Adam would move weights of tiny gradients by the sign of what rounding leaves of them."""

OTHER_WAYS: dict[str, dict[str, Any]] = {
    "live": {"precompute_ref": False},
    "evaluated in threes": {"per_device_eval_batch_size": 3},
}


def lines(result: Any) -> list[dict[str, float]]:
    """What was logged of steps and evaluations."""
    names = {*NAMES, *(f"eval_{name}" for name in NAMES)}
    return [
        found
        for log in result.log_history
        if (found := {name: value for name, value in log.items() if name in names})
    ]


def assert_alike(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    # at the reference all margins are 0, and rounding says which answer has the higher reward
    first, others = (
        {n: x for n, x in each[0].items() if n != ACCURACY} for each in (found, expected)
    )
    for mine, theirs in zip([first, *found[1:]], [others, *expected[1:]], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module", params=CASES)
def config(
    request: pytest.FixtureRequest, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    case = CASES[request.param]
    made = test_kto.config_of if case["stage"] == "kto" else test_dpo.config_of
    return made(
        llama_folder,
        tmp_path_factory.mktemp("run"),
        val_size=7,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
        **SGD,
        **case,
    )


@pytest.fixture(scope="module")
def whole(config: dict[str, Any]) -> list[dict[str, float]]:
    found = lines(luthier.train(config))
    assert "rewards/margins" in found[0]
    evaluated = found[-1]["eval_rewards/margins"]
    assert abs(evaluated) > 1e-3, "something is learned"
    if config["stage"] == "kto":
        assert "kl" in found[0]
        assert found[-1]["eval_kl"] > 0
    return found


@pytest.mark.parametrize("way", WAYS | OTHER_WAYS)
def test_however_it_is_cut(way: str, config, whole):
    assert_alike(lines(luthier.train(config | (WAYS | OTHER_WAYS)[way])), whole)


def test_memory_that_runs_out_changes_nothing(config, whole):
    most = 60 if config["stage"] == "kto" else 90
    with full_above(STAGES.get(config["stage"]), most) as failed:
        found = lines(luthier.train(config | {"tokens_per_micro_batch": 4096}))

    assert failed
    assert_alike(found, whole)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **others):
        control.should_training_stop |= state.global_step == 3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_goes_on_is_the_same_run(method: str, config, tmp_path: Path):
    config = config | {
        "finetuning_type": method,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 5e-3,
        "overwrite_output_dir": False,
    }
    once = luthier.train(config | {"output_dir": str(tmp_path / "once")})
    luthier.train(config | {"output_dir": str(tmp_path / "cut")}, callbacks=[Stop()])
    cut = config | {"output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": True}
    resumed = luthier.train(cut)

    assert lines(resumed) == lines(once)
    theirs = dict(once.model.named_parameters())
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, theirs[name]), name


def on_this_rank(config: dict[str, Any], settings: list[dict[str, Any]]) -> list[Any]:
    dist.init_process_group("gloo")
    found = []
    for each in settings:
        found.append(lines(luthier.train(config | each)))
        dist.barrier()
    return found


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(config, whole, tmp_path: Path):
    here = config | {"output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": 1}
    ranks = values_of_ranks(on_this_rank, 2, here, [{}, {"precompute_ref": False}])

    for found in ranks[0]:
        assert_alike(found, whole)


def in_parts(config: dict[str, Any], settings: list[dict[str, Any]]) -> list[Any]:
    from luthier.errors import LuthierError

    found: list[Any] = []
    for each in settings:
        try:
            found.append(lines(luthier.train(config | each)))
        except LuthierError as problem:
            found.append(str(problem))
    return found


IN_PARTS: dict[str, dict[str, Any]] = {
    "fsdp": {"fsdp": "full_shard"},
    "zero 2": {"deepspeed": {"zero_optimization": {"stage": 2}}},
    "zero 3": {"deepspeed": {"zero_optimization": {"stage": 3}}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "way"),
    [
        ("kto", "fsdp"),
        ("kto", "zero 3"),
        *(("dpo, all but coupled", way) for way in IN_PARTS),
    ],
    indirect=["config"],
)
def test_weights_in_parts_learn_the_same_or_say_why_not(way: str, config, whole, tmp_path: Path):
    """The adapter alone where DeepSpeed makes one run a process, and of pairs."""
    split = {"output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": 1}
    here = config | IN_PARTS[way] | split
    full = {"finetuning_type": "full", "learning_rate": 0.05}
    read_before = full | {"kto_loss": "apo_zero_unpaired"}
    says_why = way == "fsdp" and config["stage"] == "kto"
    settings = [{}, full, read_before] if says_why else [{}]
    learned, *others = values_of_ranks(in_parts, 2, here, settings)[0]

    assert_alike(learned, whole)
    if others:
        refused, kept = others
        assert "no copy of the first weights is held" in refused
        assert_alike(kept, lines(luthier.train(config | read_before)))
