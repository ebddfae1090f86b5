import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.arguments.parse import parse_dict
from luthier.arguments.resolve import resolve_warmup_steps
from luthier.arguments.training import TrainingArguments

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}

INFERRED = [
    ({}, "lora_alpha", 16, "lora_alpha = 16 (twice lora_rank 8)"),
    (
        {"disable_gradient_checkpointing": True},
        "gradient_checkpointing",
        False,
        "gradient_checkpointing = False (disable_gradient_checkpointing)",
    ),
    (
        {"neftune_noise_alpha": 5},
        "layout",
        "padded",
        "layout = padded (neftune_noise_alpha scales its noise by the length of a padded row)",
    ),
    (
        {"add_tokens": "<a>"},
        "resize_vocab",
        True,
        "resize_vocab = True (add_tokens adds to the vocabulary)",
    ),
    (
        {"init_special_tokens": "desc_init"},
        "init_special_tokens",
        "noise_init",
        "init_special_tokens = noise_init (no new_special_tokens_config describes the tokens)",
    ),
    (
        {"eval_strategy": "epoch", "val_size": 0.1},
        "do_eval",
        True,
        "do_eval = True (eval_strategy epoch)",
    ),
    (
        {"eval_strategy": "steps", "val_size": 0.1, "logging_steps": 5},
        "eval_steps",
        5,
        "eval_steps = 5.0 (as logging_steps)",
    ),
    (
        {"eval_strategy": "steps", "val_size": 0.1, "load_best_model_at_end": True},
        "metric_for_best_model",
        "loss",
        "metric_for_best_model = loss (load_best_model_at_end needs one)",
    ),
    (
        {"metric_for_best_model": "accuracy"},
        "greater_is_better",
        True,
        "greater_is_better = True (metric_for_best_model accuracy)",
    ),
]


@pytest.mark.parametrize(("values", "name", "expected", "line"), INFERRED)
def test_what_is_inferred_is_said(values, name, expected, line):
    arguments = parse_dict({**RUN, **values})

    assert arguments.flat()[name] == expected
    assert line in arguments.notes


@pytest.mark.parametrize(
    ("name", "value"), [("lora_alpha", 3), ("eval_steps", 7), ("greater_is_better", True)]
)
def test_what_was_given_is_never_inferred(name, value):
    arguments = parse_dict(
        {
            **RUN,
            "val_size": 0.1,
            "eval_strategy": "steps",
            "metric_for_best_model": "loss",
            name: value,
        }
    )

    assert arguments.flat()[name] == value
    assert not any(note.startswith(f"{name} =") for note in arguments.notes)


def test_knobs_of_another_method_are_said_to_be_idle():
    arguments = parse_dict({**RUN, "finetuning_type": "full", "lora_rank": 4})

    assert "finetuning_type is full: lora_rank have no effect" in arguments.notes


def test_knobs_of_another_stage_are_said_to_be_idle():
    arguments = parse_dict({**RUN, "stage": "sft", "kto_loss": "kto", "pref_beta": 0.2})

    assert "stage is sft: pref_beta, kto_loss have no effect" in arguments.notes


def test_an_idle_knob_is_told_once():
    given = {"compute_accuracy": True, "kto_loss": "kto", "label_smoothing_factor": 0.1}
    arguments = parse_dict({**RUN, "stage": "dpo", **given})

    told = [note for note in arguments.notes if "no effect" in note]
    assert all(sum(name in note for note in told) == 1 for name in given)


def test_a_reference_that_sft_does_not_read_is_told():
    notes = parse_dict({**RUN, "ref_model": "other"}).notes

    assert "stage is sft without use_asft_loss: ref_model have no effect" in notes
    asked = parse_dict({**RUN, "ref_model": "other", "use_asft_loss": True})
    assert not any("no effect" in note for note in asked.notes)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.999, 1.0])
@pytest.mark.parametrize("max_steps", [1, 7, 100, 117])
def test_the_ratio_of_warmup_is_rounded_up(ratio, max_steps):
    training = TrainingArguments(warmup_ratio=ratio)

    assert resolve_warmup_steps(training, max_steps)[0] == math.ceil(max_steps * ratio)


def test_steps_of_warmup_win_over_the_ratio():
    training = TrainingArguments(warmup_ratio=0.5, warmup_steps=3)

    assert resolve_warmup_steps(training, 100) == (3, "")


def test_steps_of_warmup_below_one_are_a_share():
    assert resolve_warmup_steps(TrainingArguments(warmup_steps=0.25), 10)[0] == 3


def test_inferred_warmup_is_said():
    training = TrainingArguments(warmup_ratio=0.1)

    assert resolve_warmup_steps(training, 117) == (
        12,
        "warmup_steps = 12 (warmup_ratio 0.1 of 117 steps)",
    )
    assert resolve_warmup_steps(TrainingArguments(), 117) == (0, "")


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_warmup_never_exceeds_the_run(ratio, max_steps):
    steps, _ = resolve_warmup_steps(TrainingArguments(warmup_ratio=ratio), max_steps)

    assert 0 <= steps <= max_steps
