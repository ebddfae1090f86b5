"""what an entry knows of itself is asked before anything is loaded"""

from __future__ import annotations

import pytest

from luthier.arguments.parse import parse_dict
from luthier.training.preflight import find_problems, find_problems_of_a_chat

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}
ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("given", "holder"),
    [
        ({"fsdp": True}, "fsdp"),
        ({"deepspeed": ZERO2}, "deepspeed"),
        ({"deepspeed": {"zero_optimization": {"stage": 0}}}, None),
        ({}, None),
    ],
    ids=str,
)
def test_an_optimizer_of_whole_weights_is_not_given_parts(given, holder):
    problems = find_problems(parse_dict(RUN | given | {"optim": "lomo"}))

    told = [each for each in problems if each.startswith("optim: lomo works on whole weights")]
    assert len(told) == (holder is not None)
    assert all(f"and {holder} holds" in each for each in told)
    assert not any("whole weights" in each for each in find_problems(parse_dict(RUN | given)))


@pytest.mark.parametrize(
    ("given", "package"),
    [
        ({"optim": "lomo"}, "lomo_optim"),
        ({"optim": "paged_lion_8bit"}, "bitsandbytes"),
        ({"report_to": "neptune"}, "neptune"),
        ({"flash_attn": "fa2"}, "flash_attn"),
    ],
    ids=str,
)
def test_a_package_that_a_value_needs_is_named(given, package, monkeypatch):
    monkeypatch.setattr("luthier.training.preflight.is_installed", lambda module: False)

    problems = find_problems(parse_dict(RUN | given))

    ((name, value),) = given.items()
    assert any(
        each.startswith(f"{name}: {value} needs the package {package!r}") for each in problems
    )


def test_a_chat_needs_the_packages_of_its_model_alone(monkeypatch):
    monkeypatch.setattr("luthier.training.preflight.is_installed", lambda module: False)
    given = {"report_to": "wandb", "optim": "lomo", "flash_attn": "fa2"}

    problems = find_problems_of_a_chat(parse_dict(RUN | given, purpose="chat"))

    assert [each for each in problems if "needs the package" in each] == [
        "flash_attn: fa2 needs the package 'flash_attn', which is not installed: pip install "
        "flash-attn"
    ]
