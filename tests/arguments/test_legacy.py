import pytest

from luthier.arguments.legacy import LEGACY
from luthier.arguments.parse import parse_command_line, parse_dict
from luthier.arguments.record import fields
from luthier.errors import ArgumentsError
from tests.arguments.expected_names import EXPECTED_NAMES

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}


def test_every_expected_name_has_a_status():
    known = {**fields(), **LEGACY}

    assert [name for name in EXPECTED_NAMES if name not in known] == []


def test_no_name_has_two_statuses():
    assert fields().keys() & LEGACY.keys() == set()


@pytest.mark.parametrize("name", [name for name, each in LEGACY.items() if not each.to])
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
        ("train_last_turn_only", True, "mask_history", True),
        ("new_special_tokens", "<a>", "add_special_tokens", ("<a>",)),
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


@pytest.mark.parametrize(
    "given",
    [
        {"use_v1_kernels": True},
        {"auto_find_batch_size": True},
        {"torch_empty_cache_steps": 4},
        {"average_tokens_across_devices": False},
        {"ray_num_workers": 4},
        {"image_max_pixels": 1000, "freeze_vision_tower": False},
        {"media_dir": "data", "video_fps": 1.0},
    ],
    ids=lambda given: next(iter(given)),
)
def test_harmless_knobs_have_no_effect_and_a_line_each(given):
    notes = parse_dict(RUN | given).notes

    for name in given:
        assert sum(note.startswith(f"dict: {name} has no effect. ") for note in notes) == 1


@pytest.mark.parametrize(
    ("report_to", "expected"),
    [
        (None, ("swanlab",)),
        ("none", ("swanlab",)),
        ("wandb", ("wandb", "swanlab")),
        ("all", ("all",)),
        (["tensorboard", "swanlab"], ("tensorboard", "swanlab")),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_swanlab_joins_the_trackers_that_are_named(report_to, expected, is_first):
    switch = {"use_swanlab": True, "swanlab_run_name": "r", "swanlab_mode": "local"}
    trackers = {"report_to": report_to}
    given = {**switch, **trackers} if is_first else {**trackers, **switch}

    training = parse_dict(RUN | given).training

    assert training.report_to == expected
    assert (training.run_name, training.swanlab_mode) == ("r", "local")


def test_parts_of_ktransformers_are_known():
    assert "kt_config has no effect" in parse_dict({**RUN, "kt_config": "a.yaml"}).notes[0]


@pytest.mark.parametrize("variable", ["USE_OPENMIND_HUB", "USE_RAY", "USE_V1", "USE_MCA"])
def test_switches_in_the_environment_are_told(monkeypatch, variable):
    said = f"{variable} is set in the environment, and has no effect. "
    monkeypatch.setenv(variable, "0")
    assert not any(said in note for note in parse_dict(RUN).notes)

    monkeypatch.setenv(variable, "1")

    assert sum(note.startswith(said) for note in parse_dict(RUN).notes) == 1


def test_extra_arguments_are_left_out_where_the_environment_allows_them(monkeypatch):
    monkeypatch.setenv("ALLOW_EXTRA_ARGS", "true")

    from_dict = parse_dict({**RUN, "my_own": 1})
    words = [f"{name}={value}" for name, value in RUN.items()]
    from_words = parse_command_line([*words, "--my_own", "1"])

    for arguments in (from_dict, from_words):
        assert sum("my_own is unknown" in note for note in arguments.notes) == 1
        assert sum("ALLOW_EXTRA_ARGS" in note for note in arguments.notes) == 1
