from __future__ import annotations

import inspect
from typing import Any

import pytest

from luthier.arguments.choices import SCHEDULES
from luthier.arguments.parse import parse_dict
from luthier.arguments.training import ACCELERATOR, CHECKPOINTING
from luthier.errors import ArgumentsError

GOOD = {
    "model_name_or_path": "m",
    "dataset": "d",
    "output_dir": "o",
    "do_train": True,
    "val_size": 0.1,
    "eval_strategy": "steps",
}


def problems(**given: Any) -> list[str]:
    try:
        parse_dict(GOOD | given)
    except ArgumentsError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr_rate: 0.1"),
        (
            {"lr_scheduler_type": "cosine_warmup_with_min_lr", "lr_scheduler_kwargs": {}},
            "has neither",
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 0.0, "min_lr_rate": 0.1},
            },
            "has both",
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rte": 0.1, "min_lr": 1e-6},
            },
            "cosine_with_min_lr takes no 'min_lr_rte'. Did you mean 'min_lr_rate'",
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": '{"min_lr_rate": "much"}',
            },
            "min_lr_rate is 'much'; expected a number of at least 0 and of at most 1",
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"decay_type": "sqrt"},
            },
            "decay_type is 'sqrt'; expected one of linear, cosine, 1-sqrt",
        ),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_stable_steps": True},
            },
            "num_stable_steps is True; expected a whole number of at least 0",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
            "less than learning_rate, 5e-05.",
        ),
        ({"lr_scheduler_kwargs": {"num_cycles": 1}}, "linear takes no 'num_cycles'. It takes none"),
        ({"optim_args": "betas"}, "expected name=value"),
        ({"optim": "sgd", "optim_args": "momentum=a"}, "momentum is 'a'; expected a number"),
        ({"optim": "sgd", "optim_args": "nesterof=true"}, "Did you mean 'nesterov'"),
        ({"optim": "adamw_torch", "optim_args": "momentum=0.9"}, "adamw_torch takes no 'momentum'"),
        ({"gradient_checkpointing_kwargs": {"use_reentrent": False}}, "'use_reentrant'"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": "no way"}}, "expected true or false"),
        ({"gradient_checkpointing_kwargs": {"debug": True}}, "use_reentrant: false"),
        ({"accelerator_config": {"split_batch": True}}, "'split_batches'"),
    ],
)
def test_what_is_handed_on_is_checked_with_the_rest(given, said):
    found = problems(**given)

    assert len(found) == 1
    assert said in found[0]
    assert found[0].startswith("dict: ")


@pytest.mark.parametrize(
    "given",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": '{"num_stable_steps": 4}',
        },
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"min_lr": [0, 1e-6]}},
        {"lr_scheduler_kwargs": {}, "optim_args": ""},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True"},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False, "debug": True}},
        {"accelerator_config": {"even_batches": False, "dispatch_batches": None}},
    ],
)
def test_what_the_libraries_take_is_taken(given):
    assert problems(**given) == []


def test_the_names_are_those_of_the_libraries():
    import torch
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
    from transformers.trainer_pt_utils import AcceleratorConfig

    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    classes = {
        "reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "greedy": GreedyLR,
    }
    for kind, make in TYPE_TO_SCHEDULER_FUNCTION.items():
        taken = set(inspect.signature(classes.get(kind.value, make)).parameters) - ours
        assert taken == set(SCHEDULES[kind.value].settings), kind
    checkpoint = inspect.signature(torch.utils.checkpoint.checkpoint).parameters
    assert set(CHECKPOINTING) - {"preserve_rng_state"} <= set(checkpoint)
    assert set(ACCELERATOR) == set(inspect.signature(AcceleratorConfig).parameters)


def test_schedules_that_act_on_evaluations_need_some():
    found = problems(lr_scheduler_type="greedy", eval_strategy="no")

    assert ["greedy acts on evaluations" in one for one in found] == [True]
