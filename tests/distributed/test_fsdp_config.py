"""what users say of FSDP in old and new words, and what is made of it"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.arguments.parse import parse_dict
from luthier.arguments.record import Arguments
from luthier.distributed.fsdp_config import (
    AT_ONCE,
    BY_LAYER,
    BY_SIZE,
    FULL,
    SHARDED,
    Reading,
    Sharding,
    read_sharding,
)
from luthier.errors import ArgumentsError

FSDP1_OF_ACCELERATE = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "1",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_BACKWARD_PREFETCH": "BACKWARD_PRE",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}
"""What `accelerate launch` sets for an older file with the defaults of `accelerate config`."""


def arguments(**given: object) -> Arguments:
    needed = {"model_name_or_path": "m", "output_dir": "o", "dataset": "d", "do_train": True}
    return parse_dict(needed | given)


def reading(environment: dict[str, str] | None = None, **given: object) -> Reading:
    return read_sharding(arguments(**given), environment or {})


def sharding(environment: dict[str, str] | None = None, **given: object) -> Sharding:
    found = reading(environment, **given)
    assert not found.problems
    assert found.sharding is not None
    return found.sharding


def problem(environment: dict[str, str] | None = None, **given: object) -> str:
    found = reading(environment, **given)
    assert found.sharding is None
    return "\n".join(found.problems)


def test_without_fsdp_nothing_is_held_in_parts():
    for off in (None, False, "false", "", []):
        assert reading(fsdp=off) == Reading()


def test_settings_without_fsdp_are_said_to_have_no_effect():
    found = reading(
        fsdp_config={"cpu_offload": True}, fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer"
    )

    assert found.sharding is None
    assert found.notes == [
        "fsdp is not set: fsdp_config, fsdp_transformer_layer_cls_to_wrap have no effect",
    ]


@pytest.mark.parametrize("on", [True, "true", "full_shard", "full_shard auto_wrap", ["full_shard"]])
def test_every_way_to_say_yes_means_the_same(on: object):
    assert sharding(fsdp=on) == Sharding()


def test_old_words_become_settings_of_fsdp2():
    kept = sharding(fsdp="shard_grad_op auto_wrap offload")

    assert kept == Sharding(reshard_after_forward=False, cpu_offload=True)
    assert reading(fsdp="shard_grad_op,offload").notes == [
        "fsdp = true, with reshard_after_forward: False, cpu_offload: True (FSDP2)"
    ]


def test_settings_come_with_and_without_their_prefix():
    plain = {"reshard_after_forward": False, "state_dict_type": "sharded_state_dict"}
    prefixed = {f"fsdp_{name}": value for name, value in plain.items()}

    assert sharding(fsdp=True, fsdp_config=plain) == sharding(fsdp=True, fsdp_config=prefixed)
    assert sharding(fsdp=True, fsdp_config=plain) == Sharding(
        reshard_after_forward=False, state_dict_type=SHARDED
    )


def test_the_library_takes_what_comes_out():
    config = sharding(
        fsdp=True, fsdp_config={"transformer_layer_cls_to_wrap": "B, A", "cpu_offload": "true"}
    ).library_config()

    assert config == {
        "version": 2,
        "reshard_after_forward": True,
        "cpu_offload": True,
        "auto_wrap_policy": BY_LAYER,
        "state_dict_type": FULL,
        "transformer_layer_cls_to_wrap": ["A", "B"],
    }


def test_a_file_of_accelerate_can_be_named(tmp_path: Path):
    inner = {"fsdp_version": 1, "fsdp_sharding_strategy": 2, "fsdp_backward_prefetch": "NONE"}
    text = json.dumps({"distributed_type": "FSDP", "fsdp_config": inner})
    files = [tmp_path / "a.json", tmp_path / "a.yaml"]
    for file in files:
        file.write_text(text)

    for file in files:
        found = reading(fsdp=True, fsdp_config=str(file))
        assert found.sharding == Sharding(reshard_after_forward=False)
        assert found.notes == [
            "fsdp_config: fsdp_backward_prefetch has no effect: FSDP2 needs no such setting",
            "fsdp: FSDP1 (fsdp_config: fsdp_version) is taken as FSDP2, which replaces it",
        ]
    assert reading(fsdp=True, fsdp_config=text).sharding == Sharding(reshard_after_forward=False)


def test_arguments_from_before_fsdp_config_are_heard():
    assert "fsdp_min_num_params has no effect" in arguments(fsdp_min_num_params=9).notes[0]
    assert sharding(
        fsdp=True, fsdp_transformer_layer_cls_to_wrap="LlamaDecoderLayer"
    ).transformer_layer_cls_to_wrap == ("LlamaDecoderLayer",)


def test_an_older_file_of_accelerates_launcher_is_taken_as_fsdp2():
    found = reading(FSDP1_OF_ACCELERATE)

    assert found.sharding == Sharding()
    assert found.notes == [
        "fsdp: FSDP1 (accelerate's configuration) is taken as FSDP2, which replaces it"
    ]


def test_the_runs_own_settings_win_over_accelerates_launcher():
    launcher = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}

    found = reading(launcher, fsdp=True, fsdp_config={"cpu_offload": True})

    assert found.sharding == Sharding(cpu_offload=True)
    assert found.notes == [
        "fsdp: cpu_offload = True (fsdp_config: cpu_offload); accelerate's configuration says "
        "False, which is put aside"
    ]


def test_settings_that_nothing_follows_from_are_named():
    config = {"cpu_ram_efficient_loading": True, "use_orig_params": "true", "limit_all_gathers": 0}

    config |= {"min_num_params": 9, "auto_wrap_policy": BY_SIZE}
    found = reading(fsdp=True, fsdp_config=config)

    assert found.sharding == Sharding()
    assert found.notes == [
        "fsdp_config: cpu_ram_efficient_loading has no effect: transformers 5 reads the weights on "
        "every rank all the same",
        "fsdp_config: use_orig_params has no effect: FSDP2 needs no such setting",
        "fsdp_config: min_num_params has no effect: layers are held for themselves, whatever their "
        "size",
        f"fsdp: auto_wrap_policy = {BY_LAYER} (modules are not held by their size)",
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fsdp": "hybrid_shard"}, "write full_shard"),
        ({"fsdp": "no_shard auto_wrap"}, "leave fsdp out, which is DDP"),
        ({"fsdp": "full_shard shard_grad_op"}, "contradict each other"),
        (
            {"fsdp": "full_shard", "fsdp_config": {"reshard_after_forward": False}},
            "fsdp: full_shard and fsdp_config: reshard_after_forward contradict each other",
        ),
        ({"fsdp": "offload", "fsdp_config": {"cpu_offload": False}}, "contradict each other"),
        ({"fsdp_config": {"reshard_after_forwards": True}}, "Did you mean reshard_after_forward?"),
        ({"fsdp_config": {"cpu_offload": "maybe"}}, "is 'maybe': expected true or false"),
        ({"fsdp_config": {"version": 3}}, "expected 2"),
        ({"fsdp_config": {"state_dict_type": "LOCAL_STATE_DICT"}}, SHARDED),
        ({"fsdp_config": {"auto_wrap_policy": "LAYERS"}}, BY_LAYER),
        ({"optim": "adafactor"}, "cannot work on weights in parts"),
        (
            {"fsdp_config": {"auto_wrap_policy": AT_ONCE, "transformer_layer_cls_to_wrap": "A"}},
            "exclude each other",
        ),
        ({"fsdp_config": {"xla": True}}, "TPUs"),
        ({"fsdp_config": {"ignored_modules": "lm_head"}}, "leave it out"),
        ({"fsdp_config": "absent.json"}, "there is no file absent.json"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "keep one of them"),
        (
            {"fsdp_config": {"activation_checkpointing": True}, "gradient_checkpointing": False},
            "keep one of them",
        ),
        ({"fsdp_config": {"state_dict_type": SHARDED}, "save_only_model": True}, FULL),
        (
            {"predict_with_generate": True, "val_size": 0.1, "do_eval": True},
            "in a run without do_train",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(given: dict[str, object], says: str):
    assert says in problem(**({"fsdp": True} | given))


def test_files_that_hold_no_settings_are_refused(tmp_path: Path):
    for name, text in (("a.json", "{"), ("b.json", "[1]"), ("c.yaml", "a: [")):
        (tmp_path / name).write_text(text)
        assert name in problem(fsdp=True, fsdp_config=str(tmp_path / name))


def test_unknown_words_are_refused_with_the_known_ones():
    with pytest.raises(ArgumentsError, match="full_shard"):
        arguments(fsdp="fully_shard")
