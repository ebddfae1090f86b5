"""the table of dtypes, row by row"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.modeling import dtypes
from luthier.modeling.dtypes import Dtypes, choose_dtypes, held_dtypes, without_emulation
from luthier.modeling.loader import load_model
from luthier.modeling.tokenizer import load_tokenizer
from tests import tiny
from tests.modeling.making import make_arguments

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("half"), tiny.make_llama().to(BF16))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"pure_bf16": True}, Dtypes(BF16, BF16)),
        ({"bf16": True}, Dtypes(BF16, FP32)),
        ({"fp16": True}, Dtypes(FP16, FP32)),
        ({"bf16": True, "finetuning_type": "freeze"}, Dtypes(BF16, FP32)),
        ({"bf16": True, "finetuning_type": "full"}, Dtypes(FP32, FP32)),
        ({}, Dtypes(FP32, FP32)),
        ({"infer_dtype": "float16"}, Dtypes(FP32, FP32)),
    ],
)
def test_in_training(values: dict[str, object], expected: Dtypes):
    arguments = make_arguments(**values)

    assert choose_dtypes(arguments, is_trainable=True, stored=BF16) == expected


def test_frozen_weights_stored_in_float32_are_held_in_what_is_computed(llama_folder: Path):
    arguments = make_arguments(model_name_or_path=str(llama_folder), bf16=True)

    model = load_model(arguments, load_tokenizer(arguments.model), is_trainable=True)

    assert held_dtypes(model) == {"trained": "float32", "frozen": "bfloat16"}


@pytest.mark.parametrize(
    ("values", "is_gguf", "expected"),
    [
        ({}, False, "auto"),
        ({"bf16": True}, False, "auto"),
        ({"infer_dtype": "float32"}, False, FP32),
        ({"infer_dtype": "bfloat16", "fp16": True}, True, BF16),
        ({}, True, FP32),
        ({"bf16": True}, True, BF16),
    ],
)
def test_in_answering(values: dict[str, object], is_gguf: bool, expected: object):
    arguments = make_arguments(**values)

    chosen = choose_dtypes(arguments, is_trainable=False, stored=FP32, is_gguf=is_gguf)

    assert chosen == Dtypes(expected, None)


@pytest.mark.parametrize(
    ("values", "frozen", "trained"),
    [
        ({}, {FP32}, {FP32}),
        ({"bf16": True}, {BF16}, {FP32}),
        ({"fp16": True}, {FP16}, {FP32}),
        ({"pure_bf16": True}, {BF16}, {BF16}),
        ({"finetuning_type": "full", "bf16": True}, set(), {FP32}),
        ({"finetuning_type": "full", "pure_bf16": True}, set(), {BF16}),
        ({"finetuning_type": "freeze", "bf16": True, "freeze_trainable_layers": 1}, {BF16}, {FP32}),
    ],
)
def test_loaded_models_stand_in_the_table(
    half_folder: Path, values: dict[str, object], frozen: set[object], trained: set[object], capsys
):
    arguments = make_arguments(model_name_or_path=str(half_folder), **values)

    model = load_model(arguments, load_tokenizer(arguments.model), is_trainable=True)

    found = {True: set(), False: set()}
    for parameter in model.parameters():
        found[parameter.requires_grad].add(parameter.dtype)
    assert found == {False: frozen, True: trained}
    held = {"trained": trained, "frozen": frozen}
    told = ", ".join(f"{str(*d)[6:]} ({kind})" for kind, d in held.items() if d)
    assert f"weights: {told}; stored in bfloat16\n" in capsys.readouterr().err


def test_bfloat16_is_not_emulated_on_a_cpu_without_it(monkeypatch, capsys):
    monkeypatch.setattr(dtypes, "is_emulated", lambda dtype, use_cpu: dtype is BF16)
    asked = make_arguments(bf16=True, pure_bf16=True)

    arguments = without_emulation(asked)

    assert not arguments.training.bf16
    assert not arguments.finetuning.pure_bf16
    assert choose_dtypes(arguments, is_trainable=True, stored=BF16) == Dtypes(FP32, FP32)
    assert choose_dtypes(arguments, is_trainable=False, stored=BF16) == Dtypes(FP32, None)
    assert "bf16 and pure_bf16: this CPU has no such instructions" in capsys.readouterr().err


def test_bfloat16_stays_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(dtypes, "is_emulated", lambda dtype, use_cpu: dtype is FP16)
    asked = make_arguments(bf16=True)

    assert without_emulation(asked) is asked
    assert choose_dtypes(asked, is_trainable=False, stored=BF16) == Dtypes("auto", None)
