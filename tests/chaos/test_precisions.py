"""the short form of precisions.py: every extra, and each method in each half precision"""

from __future__ import annotations

import pytest

import luthier
from luthier.modeling import dtypes
from tests.chaos.precisions import PRECISIONS, Cell, Workshop, losses, problems_of
from tests.launched import values_of_ranks

pytestmark = pytest.mark.slow

TIED, UNTIED = True, False

CELLS = (
    Cell("lora", "nothing", TIED, "fp16", "bfloat16"),
    Cell("lora", "additional_target", TIED, "bf16", "bfloat16"),
    Cell("lora", "additional_target", UNTIED, "fp16", "float16"),
    Cell("lora", "new_tokens", UNTIED, "bf16", "bfloat16"),
    Cell("lora", "new_tokens_of_template", TIED, "pure_bf16", "float16"),
    Cell("lora", "dora", UNTIED, "fp16", "bfloat16"),
    Cell("lora", "pissa", TIED, "bf16", "float16"),
    Cell("lora", "loraplus", UNTIED, "pure_bf16", "bfloat16"),
    Cell("lora", "neftune", TIED, "bf16", "bfloat16"),
    Cell("lora", "dropout", UNTIED, "bf16", "float16"),
    Cell("freeze", "nothing", UNTIED, "bf16", "bfloat16"),
    Cell("freeze", "additional_target", TIED, "fp16", "bfloat16"),
    Cell("freeze", "new_tokens", UNTIED, "pure_bf16", "float16"),
    Cell("freeze", "neftune", TIED, "bf16", "float16"),
    Cell("full", "nothing", TIED, "bf16", "bfloat16"),
    Cell("full", "new_tokens_of_template", UNTIED, "fp16", "float16"),
    Cell("full", "dropout", TIED, "pure_bf16", "bfloat16"),
)


ON_RANKS = (
    Cell("lora", "additional_target", TIED, "bf16", "bfloat16"),
    Cell("freeze", "nothing", UNTIED, "fp16", "float16"),
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop")).make()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_half_precision_is_float32_but_for_rounding(cell, workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(dtypes, "is_emulated", lambda dtype, use_cpu: False)

    assert not problems_of(workshop, cell, tmp_path)


def test_weights_in_parts_learn_as_in_float32(workshop, tmp_path):
    runs = {}
    for number, cell in enumerate(ON_RANKS):
        arguments = workshop.arguments(cell, tmp_path / str(number))
        apart = {"eval_strategy": "no", "save_strategy": "no", "do_eval": True, "use_cpu": True}
        runs[cell] = arguments | apart | {"per_device_train_batch_size": 1, "fsdp": True}

    told, other = values_of_ranks(train_all, 2, list(runs.values()))

    assert told == other
    for number, (cell, found) in enumerate(zip(runs, told, strict=True)):
        expected = workshop.expected(cell, tmp_path / f"{number}-in-float32")
        one, two, _, three, four, *_, evaluated = expected
        exact = [one, two, three, four, evaluated]
        assert found == pytest.approx(exact, rel=PRECISIONS[cell.precision])


def train_all(configs):
    dtypes.is_emulated = lambda dtype, use_cpu: False
    return [losses(luthier.train(config)) for config in configs]
