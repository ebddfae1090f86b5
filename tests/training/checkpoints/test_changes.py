"""what may change between a checkpoint and the run that goes on from it"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from luthier.arguments.parse import parse_dict
from luthier.arguments.record import SECTIONS
from luthier.training.checkpoints import changes
from luthier.training.checkpoints.changes import compare
from luthier.training.checkpoints.identity import Identity, fingerprint, settings_of

GIVEN = {
    "model_name_or_path": "here/model",
    "dataset": "data",
    "template": "chatml",
    "do_train": True,
    "output_dir": "run",
    "max_steps": 10,
    "warmup_steps": 2,
}


def identity(**values: object) -> Identity:
    settings = settings_of(parse_dict(GIVEN | values))
    data = {"fingerprint": "f", "rows": 7}
    return Identity(settings, 42, 1, "single", 8, data, run_id="one")


def changed(**values: object) -> changes.Changes:
    return compare(identity().manifest(5, 10), identity(**values))


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

    before = identity(lr_scheduler_type="constant").manifest(5, 10)
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
    found = compare(identity().manifest(5, 10), replace(identity(), **other))

    problem = found.problem(Path("c"), are_allowed=False)
    assert (problem is not None) == is_refused
    assert said in "\n".join([*found.notes, problem or ""])


def test_parts_of_deepspeed_are_read_by_as_many_processes():
    two = replace(identity(), world_size=2, strategy="zero2")
    four = replace(two, world_size=4)

    assert compare(two.manifest(5, 10), four).problem(Path("c"), are_allowed=False)
    fsdp = compare(replace(two, strategy="fsdp2").manifest(5, 10), replace(four, strategy="fsdp2"))
    assert fsdp.problem(Path("c"), are_allowed=False) is None


def test_every_name_of_the_table_is_an_argument_of_one_kind():
    known = {name for section in SECTIONS.values() for name in section.model_fields}

    assert known >= changes.FIXED | changes.FREE | changes.ELSEWHERE
    assert not changes.FIXED & changes.FREE
    assert not (changes.FIXED | changes.FREE) & changes.ELSEWHERE


def rows(*texts: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": ids,
                "labels": ids,
                "num_tokens": len(ids),
                "num_learned": len(ids),
                "origin": 0,
            }
            for ids in texts
        ]
    )


def test_the_fingerprint_knows_content_and_order_and_not_the_file():
    one, two, three = [1, 2], [3, 4, 5], [6]

    whole = fingerprint(rows(one, two, three))

    assert whole["rows"] == 3
    assert whole == fingerprint(rows(three, two, one).select([2, 1, 0]))
    others = [rows(one, three, two), rows(one, two), rows([1, 9], two, three)]
    assert all(fingerprint(each) != whole for each in others)
