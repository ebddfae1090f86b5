"""recomputed activations give the same gradients, and only where something learns or must"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.arguments.parse import parse_dict
from luthier.modeling import memory
from luthier.modeling.loader import load_model
from luthier.modeling.memory import choose_checkpointing
from luthier.modeling.tokenizer import load_tokenizer
from tests import tiny

IDS = torch.tensor([[5, 17, 300, 9, 4]])


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.make_llama(num_hidden_layers=4)
    return tiny.save(tmp_path_factory.mktemp("deep"), model)


def load(folder: Path, num_tokens: int = 5, **values: object) -> Any:
    run = {"output_dir": "o", "do_train": True, "dataset": "d", "use_cpu": True}
    arguments = parse_dict({"model_name_or_path": str(folder)} | run | values)
    model = load_model(arguments, load_tokenizer(arguments.model), is_trainable=True)
    choose_checkpointing(
        model,
        arguments,
        num_tokens=num_tokens,
        longest=5,
        is_padded=True,
        autocast=contextlib.nullcontext,
    )
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    model.train()
    model(IDS, labels=IDS).loss.backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def switched(model) -> list[bool]:
    return [
        layer.gradient_checkpointing
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
    ]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"finetuning_type": "full"}, [True] * 4),
        ({"finetuning_type": "lora", "lora_rank": 2}, [True] * 4),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 1}, [False] * 3 + [True]),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -1}, [True] * 4),
        (
            {
                "finetuning_type": "freeze",
                "freeze_trainable_layers": 1,
                "freeze_extra_modules": "embed_tokens",
            },
            [True] * 4,
        ),
    ],
)
def test_gradients_are_those_without_it(
    deep_folder: Path, values: dict[str, object], expected: list[bool], use_reentrant: bool
):
    torch.manual_seed(0)
    plain = load(deep_folder, disable_gradient_checkpointing=True, **values)
    torch.manual_seed(0)
    model = load(deep_folder, gradient_checkpointing=True, use_reentrant_gc=use_reentrant, **values)

    assert switched(model) == expected
    assert not any(switched(plain))
    wanted, found = gradients(plain), gradients(model)
    assert found.keys() == wanted.keys()
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize(
    "values", [{"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}]
)
def test_either_word_switches_it_off(deep_folder: Path, values: dict[str, object]):
    assert not any(switched(load(deep_folder, **values)))


def test_what_fits_is_kept_and_the_figures_are_said(deep_folder: Path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * 2**30)

    model = load(deep_folder)

    assert not any(switched(model))
    assert "gradient checkpointing: off, about 0.4 of 3.0 GiB needed" in capsys.readouterr().err


def test_what_does_not_fit_is_computed_again(deep_folder: Path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * 2**30)

    model = load(deep_folder, num_tokens=10**6)

    assert all(switched(model))
    assert "4 of 4 layers, reentrant; without it about " in capsys.readouterr().err


def test_memory_that_nobody_knows_is_saved(deep_folder: Path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: None)

    assert all(switched(load(deep_folder)))
    assert "nothing says how much memory cpu has" in capsys.readouterr().err


def test_ranks_take_the_most_that_is_needed_and_the_least_that_is_free(tmp_path: Path):
    address = f"file://{tmp_path / 'meeting'}"
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    ranks = [
        context.Process(target=meet, args=(address, rank, answers), daemon=True) for rank in (0, 1)
    ]

    for each in ranks:
        each.start()
    for each in ranks:
        each.join(60)

    assert [answers.get(), answers.get()] == [(20, 100), (20, 100)]


def meet(address: str, rank: int, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    needed, free = ((10, 100), (20, 200))[rank]
    answers.put(memory._worst(needed, free, torch.device("cpu")))
    torch.distributed.destroy_process_group()
