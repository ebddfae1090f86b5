"""what is announced as a result can be loaded"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.modeling.adapters.file import FILE, read_back
from tests.modeling.adapters.test_lora import load


@pytest.mark.parametrize("lost", ["lora_B", "norm"])
def test_an_adapter_that_lacks_a_weight_is_not_a_result(
    llama_folder: Path, tmp_path: Path, lost: str
):
    model = load(llama_folder, additional_target="norm", add_special_tokens="<a>")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    read_back(model, tmp_path)

    weights = load_file(tmp_path / FILE)
    del weights[next(name for name in weights if lost in name)]
    save_file(weights, tmp_path / FILE)

    with pytest.raises(ModelError, match="the adapter that was written cannot be loaded"):
        read_back(model, tmp_path)
