"""a configuration of DeepSpeed against the run's own arguments"""

import json
from pathlib import Path

import pytest

from luthier.arguments.parse import parse_dict
from luthier.distributed.deepspeed_config import (
    complete,
    find_problems,
    read_config,
    value_of,
)
from luthier.errors import ArgumentsError
from luthier.optional import is_installed

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "deepspeed").glob("*.json"))

RUN = {
    "model_name_or_path": "m",
    "dataset": "d",
    "output_dir": "o",
    "do_train": True,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "use_cpu": True,
}

needs_deepspeed = pytest.mark.skipif(
    not is_installed("deepspeed"), reason="the package deepspeed is not installed"
)


def problems_of(config, **values):
    arguments = parse_dict({**RUN, "deepspeed": config, **values})
    return [each for each in find_problems(arguments) if "not installed" not in each]


def completed(config, **values):
    arguments = parse_dict({**RUN, "deepspeed": config, **values})
    return complete(read_config(arguments.training.deepspeed), arguments)


@needs_deepspeed
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_deepspeed_reads_every_example(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    config, _ = completed(str(path))
    numbers = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
    }

    read = DeepSpeedConfig(_filled(config) | numbers)

    assert f"z{int(read.zero_optimization_stage)}" in path.stem
    assert ("offload" in path.stem) == (read.zero_config.offload_optimizer is not None)
    assert problems_of(str(path)) == []


def _filled(config):
    filled = {}
    for name, value in config.items():
        if isinstance(value, dict):
            filled[name] = _filled(value)
        elif value == "auto":
            filled[name] = 1.0 if name == "gradient_clipping" else 1000
            if name == "enabled":
                filled[name] = False
        else:
            filled[name] = value
    return filled


def test_a_configuration_is_a_file_or_json_text_or_a_mapping(tmp_path):
    config = {"zero_optimization": {"stage": 2}}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))

    for given in (str(path), json.dumps(config), config):
        assert problems_of(given) == []
        assert completed(given)[0]["zero_optimization"]["stage"] == 2


def test_false_is_no_configuration():
    assert parse_dict({**RUN, "deepspeed": "false"}).training.deepspeed is None


def test_a_file_that_is_absent_is_told(tmp_path):
    (problem,) = problems_of(str(tmp_path / "ds_z4.json"))

    assert problem.startswith("deepspeed: there is no file")
    assert "ds_z3_config.json" in problem


@pytest.mark.parametrize("content", ["{stage: 3}", "[1, 2]", "\udcff"])
def test_a_file_that_holds_something_else_is_told(tmp_path, content):
    path = tmp_path / "ds.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))

    (problem,) = problems_of(str(path))

    assert str(path) in problem


def test_json_text_that_is_none_is_told():
    with pytest.raises(ArgumentsError, match="deepspeed"):
        parse_dict({**RUN, "deepspeed": '{"zero_optimization": '})


@pytest.mark.parametrize("stage", [4, "three", True, None])
def test_an_unknown_stage_is_told(stage):
    (problem,) = problems_of({"zero_optimization": {"stage": stage}})

    assert "expected 0, 1, 2 or 3" in problem


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "per_device_train_batch_size"),
        ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps"),
        ({"gradient_clipping": 0.5}, "max_grad_norm"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, "learning_rate"),
        ({"bf16": {"enabled": True}}, "bf16"),
    ],
)
def test_numbers_that_contradict_the_arguments_are_told(config, name):
    (problem,) = problems_of(config)

    assert name in problem
    assert '"auto"' in problem


def test_a_batch_that_is_not_that_of_the_launch_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert problems_of({"train_batch_size": 16}) == []
    assert "processes is 16" in problems_of({"train_batch_size": 8})[0]


def test_numbers_that_agree_with_the_arguments_are_accepted():
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.999]}},
    }

    assert problems_of(config) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pissa_init": True}, "pissa_init"),
        ({"pure_bf16": True}, "pure_bf16"),
        ({"predict_with_generate": True, "eval_dataset": "d"}, "predict_with_generate"),
    ],
)
def test_what_needs_whole_weights_is_refused_in_stage_3_only(values, named):
    assert problems_of({"zero_optimization": {"stage": 2}}, **values) == []

    (problem,) = problems_of({"zero_optimization": {"stage": 3}}, **values)

    assert problem.startswith(named)


@pytest.mark.parametrize(
    ("trains", "then"),
    [(True, "Predict afterwards, in a run without do_train"), (False, "Leave deepspeed out,")],
)
def test_who_predicts_with_weights_in_parts_is_told_what_to_do(trains: bool, then: str):
    values = {"predict_with_generate": True, "eval_dataset": "d", "do_train": trains}

    (problem,) = problems_of({"zero_optimization": {"stage": 3}}, **values)

    assert then in problem


def test_layers_split_over_devices_are_refused():
    (problem,) = problems_of({"tensor_parallel": {"autotp_size": 2}})

    assert "autotp_size" in problem


def test_what_the_configuration_leaves_out_comes_from_the_arguments():
    config, lines = completed({})

    assert config["gradient_clipping"] == "auto"
    assert config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
    assert config["zero_optimization"] == {"stage": 0}
    assert lines == []


def test_half_precision_that_the_run_gave_up_is_given_up_here():
    config, lines = completed({"bf16": {"enabled": True}})

    assert config["bf16"]["enabled"] is False
    assert any("bf16.enabled = false" in line for line in lines)


def test_weights_in_parts_are_always_written_whole():
    given = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}}

    config, lines = completed(given)

    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert len(lines) == 1


def test_an_optimizer_that_deepspeed_would_replace_is_kept():
    given = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}

    adam, _ = completed(given)
    other, lines = completed(given, optim="adafactor")

    assert "zero_force_ds_cpu_optimizer" not in adam
    assert other["zero_force_ds_cpu_optimizer"] is False
    assert "adafactor" in lines[0]


def test_what_is_read_is_not_changed():
    given = {"zero_optimization": {"stage": 3}}

    completed(given)

    assert given == {"zero_optimization": {"stage": 3}}


def test_a_value_is_found_by_its_path():
    config = {"optimizer": {"params": {"lr": 0.1}}}

    assert value_of(config, "optimizer.params.lr") == 0.1
    assert value_of(config, "optimizer.type.name", "none") == "none"
