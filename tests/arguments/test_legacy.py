import pytest

from luthier.arguments.assemble import fields
from luthier.arguments.legacy import LEGACY
from luthier.arguments.parse import parse_dict
from luthier.errors import ArgumentsError
from tests.arguments.expected_names import EXPECTED_NAMES

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}


def test_every_expected_name_has_a_status():
    known = {**fields(), **LEGACY}

    assert [name for name in EXPECTED_NAMES if name not in known] == []


def test_no_name_has_two_statuses():
    assert fields().keys() & LEGACY.keys() == set()


@pytest.mark.parametrize("name", [name for name, each in LEGACY.items() if not each.becomes])
def test_the_default_of_an_absent_feature_is_accepted(name):
    parse_dict({**RUN, name: LEGACY[name].default})


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, each in LEGACY.items()
        if each.status in ("not yet", "refused") and each.part_of is None
    ],
)
def test_an_absent_feature_is_refused_with_a_sentence(name):
    default = LEGACY[name].default
    other = not default if isinstance(default, bool) else "something"

    with pytest.raises(ArgumentsError) as caught:
        parse_dict({**RUN, name: other})

    assert caught.value.problems[0].startswith(f"dict: {name} is ")
    assert LEGACY[name].says in caught.value.problems[0]


@pytest.mark.parametrize(
    "name", [name for name, each in LEGACY.items() if each.part_of is not None]
)
def test_a_part_of_an_absent_feature_is_idle_without_it_and_refused_with_it(name):
    whole = LEGACY[name].part_of
    assert whole in {**LEGACY, **fields()}

    arguments = parse_dict({**RUN, name: "something"})

    assert sum(f"{name} has no effect: it belongs to {whole}." in n for n in arguments.notes) == 1
    if whole in LEGACY:
        switched_on = not LEGACY[whole].default
        with pytest.raises(ArgumentsError) as caught:
            parse_dict({**RUN, name: "something", whole: switched_on or "something"})
        assert len(caught.value.problems) == 1
        assert caught.value.problems[0].startswith(f"dict: {whole} is ")


def test_a_feature_that_is_switched_off_is_no_problem():
    parse_dict({**RUN, "packing": False, "deepspeed": "false", "use_galore": False})


@pytest.mark.parametrize(
    ("old", "value", "new", "expected"),
    [
        ("evaluation_strategy", "no", "eval_strategy", "no"),
        ("no_cuda", True, "use_cpu", True),
        ("per_gpu_train_batch_size", 3, "per_device_train_batch_size", 3),
        ("per_gpu_eval_batch_size", 3, "per_device_eval_batch_size", 3),
        ("adafactor", "true", "optim", "adafactor"),
        ("group_by_length", True, "train_sampling_strategy", "group_by_length"),
        ("push_to_hub_model_id", "a/b", "hub_model_id", "a/b"),
        ("torchdynamo", "inductor", "torch_compile_backend", "inductor"),
        ("activation_checkpointing", False, "gradient_checkpointing", False),
        ("name_module_trainable", "mlp", "freeze_trainable_modules", ("mlp",)),
        ("generation_num_beams", 4, "eval_num_beams", 4),
        ("num_layer_trainable", 3, "freeze_trainable_layers", 3),
    ],
)
def test_old_names_become_new_ones_and_say_so(old, value, new, expected):
    arguments = parse_dict({**RUN, old: value})

    assert arguments.flat()[new] == expected
    assert arguments.given(new)
    assert sum(old in note for note in arguments.notes) == 1


@pytest.mark.parametrize("name", ["adafactor", "group_by_length", "no_cuda"])
def test_old_switches_that_are_off_change_nothing(name):
    arguments = parse_dict({**RUN, name: False})

    assert arguments.flat() == parse_dict(RUN).flat()


def test_old_switches_take_only_yes_or_no():
    with pytest.raises(ArgumentsError, match="expected true or false"):
        parse_dict({**RUN, "adafactor": "perhaps"})


def test_names_without_effect_are_said_once():
    arguments = parse_dict({**RUN, "fp16_backend": "amp", "save_safetensors": True})

    assert [note for note in arguments.notes if "fp16_backend" in note] == [
        "dict: fp16_backend has no effect. Mixed precision is what torch does natively; `bf16` "
        "and `fp16` choose it."
    ]
    assert sum("save_safetensors" in note for note in arguments.notes) == 1


def test_pickled_weights_are_refused():
    with pytest.raises(ArgumentsError, match="safetensors only"):
        parse_dict({**RUN, "save_safetensors": "false"})


def test_old_and_new_name_must_agree():
    parse_dict({**RUN, "evaluation_strategy": "no", "eval_strategy": "no"})

    with pytest.raises(ArgumentsError, match="say different things about eval_strategy"):
        parse_dict({**RUN, "evaluation_strategy": "no", "eval_strategy": "epoch", "val_size": 0.1})


def test_secret_values_of_absent_features_are_not_shown():
    with pytest.raises(ArgumentsError) as caught:
        parse_dict({**RUN, "ms_hub_token": "s3cret"})

    assert "s3cret" not in str(caught.value)
