"""what may change between a checkpoint and the run that goes on from it"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from luthier.arguments.parse import parse_dict
from luthier.checkpoints.compatibility import Changes, compare, compare_files
from luthier.checkpoints.fingerprint import settings_of
from luthier.checkpoints.manifest import FileRecord, Manifest
from luthier.example import ExampleSet

GIVEN = {
    "model_name_or_path": "here/model",
    "dataset": "data",
    "template": "chatml",
    "do_train": True,
    "output_dir": "run",
    "max_steps": 10,
    "warmup_steps": 2,
}


def identity(**values: object) -> Manifest:
    settings = settings_of(parse_dict(GIVEN | values))
    data = {"fingerprint": "f", "rows": 7}
    return Manifest(0, 0, "one", "", 1, "single", 42, 8, data=data, settings=settings)


def checkpoint(then: Manifest) -> Manifest:
    """Of a run; with its optimizer, beside which random numbers are written."""
    return replace(then.at(5, 10), files={"rng_state_0.pth": FileRecord(1, "")})


def changed(**values: object) -> Changes:
    return compare(checkpoint(identity()), identity(**values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"logging_steps": 1, "save_steps": 7, "dataloader_num_workers": 2, "report_to": "none"},
        {"model_name_or_path": "there/model", "output_dir": "elsewhere"},
        {"dataset": "renamed", "dataset_dir": "moved"},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"num_train_epochs": 9},
        {"max_steps": 20, "lr_scheduler_type": "linear"},
    ],
    ids=str,
)
def test_what_leaves_the_run_as_it_is_may_change(values):
    assert changed(**values).problem(Path("c"), are_allowed=False) is None


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1e-3},
        {"seed": 1},
        {"lora_dropout": 0.5},
        {"model_name_or_path": "here/another"},
        {"weight_decay": 0.1, "bf16": True},
    ],
    ids=str,
)
def test_what_changes_the_run_is_refused_with_a_list_unless_it_is_allowed(values):
    found = changed(**values)

    problem = found.problem(Path("c"), are_allowed=False)
    assert problem is not None
    assert all(f"{name}: " in problem for name in values)
    assert "resume_allow_changes" in problem
    assert found.problem(Path("c"), are_allowed=True) is None


def test_other_weights_are_refused_even_when_changes_are_allowed():
    problem = changed(lora_rank=16).problem(Path("c"), are_allowed=True)

    assert problem is not None
    assert "lora_rank: 8 then, 16 now" in problem
    assert "resume_allow_changes" not in problem


def test_more_steps_are_told_where_the_schedule_looks_at_the_end():
    assert "max_steps: 10 then, 20 now" in changed(max_steps=20).notes[0]

    before = identity(lr_scheduler_type="constant").at(5, 10)
    assert compare(before, identity(lr_scheduler_type="constant", max_steps=20)).notes == []


@pytest.mark.parametrize(
    ("other", "is_refused", "said"),
    [
        ({"data": {"fingerprint": "g", "rows": 8}}, True, "7 rows then, 8 now"),
        ({"examples_per_step": 16}, True, "8 then, 16 now"),
        ({"world_size": 2, "strategy": "ddp"}, False, "processes: 1 then, 2 now"),
        ({"world_size": 2, "strategy": "zero3"}, True, "'single' then, 'zero3' now"),
    ],
    ids=["data", "batch", "ranks", "strategy"],
)
def test_the_things_themselves_are_compared(other, is_refused, said):
    found = compare(checkpoint(identity()), replace(identity(), **other))

    problem = found.problem(Path("c"), are_allowed=False)
    assert (problem is not None) == is_refused
    assert said in "\n".join([*found.notes, problem or ""])


ALIKE, ASKED, REFUSED = "goes on", "goes on if that is allowed", "is refused"


@pytest.mark.parametrize(
    ("then", "now", "end"),
    [
        ("single 1", "ddp 2", ALIKE),
        ("fsdp2 2", "fsdp2 4", ALIKE),
        ("zero0 2", "zero0 4", ALIKE),
        ("zero1 2", "zero2 2", ALIKE),
        ("ddp 2", "fsdp2 2", ASKED),
        ("zero2 2", "zero2 4", REFUSED),
        ("zero2 2", "zero1 4", REFUSED),
        ("zero2 2", "zero3 2", REFUSED),
        ("zero0 2", "zero2 2", REFUSED),
        ("ddp 2", "zero2 2", REFUSED),
        ("zero2 2", "ddp 2", REFUSED),
        ("fsdp2 2", "zero3 2", REFUSED),
    ],
)
def test_states_of_the_optimizer_are_read_by_those_that_can(then, now, end):
    (was, was_many), (strategy, many) = then.split(), now.split()
    before = replace(identity(), strategy=was, world_size=int(was_many))
    after = replace(identity(), strategy=strategy, world_size=int(many))

    found = compare(checkpoint(before), after)

    problems = [found.problem(Path("c"), are_allowed=allowed) for allowed in (False, True)]
    assert [problem is None for problem in problems] == [end == ALIKE, end != REFUSED]
    offers = "resume_allow_changes" in (problems[0] or "")
    assert offers == (end == ASKED)
    only_weights = compare(before.at(5, 10), after)  # whole ones, in every strategy
    assert only_weights.problem(Path("c"), are_allowed=False) is None


PARTS = {
    "zero2": ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    "zero3": (
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ),
    "zero0": ("mp_rank_00_model_states.pt",),
    "ddp": (),
}


@pytest.mark.parametrize("then", PARTS)
def test_the_files_of_another_program_say_who_can_read_its_states(then, tmp_path):
    (tmp_path / "global_step5").mkdir()
    for name in ("rng_state_0.pth", *(f"global_step5/{part}" for part in PARTS[then])):
        (tmp_path / name).touch()

    for now in PARTS:
        found = compare_files(tmp_path, replace(identity(), strategy=now, world_size=2))
        assert (found.problem(tmp_path, are_allowed=True) is None) == (then == now)


@pytest.mark.parametrize(
    ("always", "then", "now"),
    [
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, {}, {"learning_rate": 1e-3}),
        ({}, {}, {"lr_scheduler_type": "reduce_lr_on_plateau"}),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            {"lr_scheduler_kwargs": {"patience": 1}},
            {"lr_scheduler_kwargs": {"patience": 2}},
        ),
        ({}, {}, {"loraplus_lr_ratio": 16.0}),
        ({}, {}, {"pissa_init": True}),
        ({}, {}, {"add_tokens": "<x>"}),
        (
            {"load_best_model_at_end": True, "save_steps": 5, "eval_steps": 5},
            {"metric_for_best_model": "eval_loss"},
            {"metric_for_best_model": "eval_accuracy"},
        ),
    ],
    ids=str,
)
def test_what_lives_in_restored_state_and_cannot_be_put_in_is_refused(always, then, now):
    evaluated = {"val_size": 4, "eval_strategy": "steps", "compute_accuracy": True}

    found = compare(
        checkpoint(identity(**evaluated, **always, **then)), identity(**evaluated, **always, **now)
    )

    problem = found.problem(Path("c"), are_allowed=True)
    assert problem is not None
    assert all(f"{name}: " in problem for name in now)


def test_a_dtype_of_deepspeeds_states_is_not_another():
    zero, single = (replace(identity(), strategy=name) for name in ("zero2", "single"))
    now = settings_of(parse_dict(GIVEN | {"bf16": True}))

    for then, is_fixed in ((zero, True), (single, False)):
        found = compare(checkpoint(then), replace(then, settings=now))
        assert (found.problem(Path("c"), are_allowed=True) is not None) == is_fixed


def test_examples_of_a_step_are_not_called_the_same_where_they_are_others():
    two = replace(identity(), world_size=2, strategy="ddp")

    same, other = (
        compare(checkpoint(identity()), each) for each in (two, replace(two, examples_per_step=16))
    )

    assert "The examples of each step are the same" in same.notes[0]
    assert "8 then, 16 now" in other.learned[0]
    assert "are the same" not in "".join(other.notes)


def rows(*texts: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": ids,
                "labels": ids,
                "num_tokens": len(ids),
                "num_units": len(ids),
                "origin": 0,
            }
            for ids in texts
        ]
    )


def fingerprint(table):
    return ExampleSet(table).fingerprint()


def test_the_fingerprint_knows_content_and_order_and_not_the_file():
    one, two, three = [1, 2], [3, 4, 5], [6]

    whole = fingerprint(rows(one, two, three))

    assert whole["rows"] == 3
    assert whole == fingerprint(rows(three, two, one).select([2, 1, 0]))
    others = [rows(one, three, two), rows(one, two), rows([1, 9], two, three)]
    assert all(fingerprint(each) != whole for each in others)
