import random
from typing import get_args

import pytest

from luthier.arguments.choices import Stage
from luthier.arguments.parse import parse_command_line, parse_dict
from luthier.arguments.record import fields
from luthier.errors import ArgumentsError

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}


def problems(**values):
    with pytest.raises(ArgumentsError) as caught:
        parse_dict({**RUN, **values})
    return caught.value.problems


def test_problems_of_all_kinds_are_reported_at_once(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_name_or_path: m\n"
        "do_train: true\n"
        "dataset: d\n"
        "lora_rnak: 8\n"
        "lora_rank: sixteen\n"
        "stage: stf\n"
        "lora_dropout: 2\n"
        "quantization_bit: 4\n"
        "bf16: true\n"
        "fp16: true\n"
        "seed: 1\n"
        "seed: 2\n"
    )

    with pytest.raises(ArgumentsError) as caught:
        parse_command_line([str(file)])

    text = str(caught.value)
    stages = ", ".join(get_args(Stage))
    for part in (
        "required: output_dir",
        f"{file}:4: the argument lora_rnak is unknown. Did you mean lora_rank",
        f"{file}:5: lora_rank is 'sixteen'; expected a whole number of at least 1.",
        f"{file}:6: stage is 'stf'; expected one of {stages}. Did you mean 'sft'",
        f"{file}:7: lora_dropout is 2; expected a number of at least 0.0 and below 1.0.",
        f"{file}:8: quantization_bit is 4. Quantised weights are not in this version",
        "bf16 and fp16 are different precisions",
        f"{file}:12: seed stands twice, here and in line 11",
    ):
        assert part in text
    assert len(caught.value.problems) == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_eval", "perhaps"),
        ("lora_rank", 0),
        ("lora_rank", 1.5),
        ("lora_rank", True),
        ("learning_rate", "fast"),
        ("learning_rate", -1),
        ("learning_rate", float("nan")),
        ("max_grad_norm", float("inf")),
        ("val_size", -0.1),
        ("top_p", 1.1),
        ("report_to", "wanb"),
        ("report_to", ["wandb", 3]),
        ("lora_target", 3),
        ("lora_target", {"a": 1}),
        ("interleave_probs", "0.5,x"),
        ("lr_scheduler_kwargs", "{not json"),
        ("lr_scheduler_kwargs", "[1]"),
        ("template", ["qwen"]),
        ("max_samples", 0),
        ("warmup_ratio", 1.5),
        ("seed", -1),
        ("num_train_epochs", 0),
        ("dataset_dir", 3.5j),
    ],
)
def test_wrong_values_are_named_with_what_was_expected(name, value):
    found = problems(**{name: value})

    assert len(found) == 1
    assert found[0].startswith(f"dict: {name} is ")
    assert "expected " in found[0]


@pytest.mark.parametrize("value", [True, "true", "True", "yes", "on", "1", 1, "t", "y"])
def test_all_words_for_yes_are_true(value):
    assert parse_dict({**RUN, "bf16": value}).training.bf16 is True


@pytest.mark.parametrize("value", [False, "false", "False", "no", "off", "0", 0, "f", "n"])
def test_all_words_for_no_are_false(value):
    assert parse_dict({**RUN, "plot_loss": value}).finetuning.plot_loss is False


def test_a_wrong_value_is_not_blamed_twice():
    found = problems(finetuning_type="lroa", use_dora=True, adapter_name_or_path="a")

    assert len(found) == 1


def test_secrets_are_not_shown_when_wrong():
    found = problems(hf_hub_token=["s3cret"])

    assert "s3cret" not in found[0]


def test_nested_sections_are_explained():
    assert "Arguments are flat" in problems(model={"model_name_or_path": "m"})[0]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lr", "learning_rate"), ("epochs", "num_train_epochs"), ("lora_r", "lora_rank")],
)
def test_familiar_names_lead_to_ours(name, meant):
    assert meant in problems(**{name: 1})[0]


def test_mistyped_names_are_recognised():
    chance = random.Random(0)
    names = [name for name in fields() if len(name) > 5]
    right = 0
    for _ in range(60):
        name = chance.choice(names)
        place = chance.randrange(1, len(name) - 1)
        typo = chance.choice(
            [
                name[:place] + name[place + 1 :],
                name[:place] + name[place + 1] + name[place] + name[place + 2 :],
                name.replace("_", "", 1),
                name + "s",
            ]
        )
        if typo in fields():
            right += 1
            continue
        right += f"Did you mean {name}" in problems(**{typo: 1})[0]

    assert right >= 55


def test_no_name_is_proposed_twice():
    (problem,) = problems(lable_names=["labels"])

    assert problem.endswith("Did you mean label_names?")
