"""the short form of precisions.py: every extra, and each method in each half precision"""

from __future__ import annotations

import pytest

from luthier.modeling import dtypes
from tests.chaos.precisions import Cell, Workshop, problems_of

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


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop")).make()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_half_precision_is_float32_but_for_rounding(cell, workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(dtypes, "is_emulated", lambda dtype, use_cpu: False)

    assert not problems_of(workshop, cell, tmp_path)
