"""an adapter is put on the weights that it was trained on, and on no others"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig

from luthier.arguments.model import ModelArguments
from luthier.errors import ModelError
from luthier.exporting.base import check_plain
from luthier.modeling.source import fingerprint_weights
from tests import tiny
from tests.exporting.making import arguments_for, export_of, make_run


@pytest.fixture
def base(tmp_path: Path, llama_folder: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "base"))


def test_a_base_that_changed_since_is_refused(tmp_path: Path, base: Path):
    run = make_run(tmp_path / "run", base)
    tiny.make_llama(seed=7).save_pretrained(base)

    with pytest.raises(ModelError, match=r"model\.safetensors differs from what its run\.json"):
        export_of(run, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_base_that_moved_is_the_same(tmp_path: Path, base: Path):
    run = make_run(tmp_path / "run", base)
    base.rename(tmp_path / "moved")

    given = {
        "model_name_or_path": str(tmp_path / "moved"),
        "adapter_name_or_path": str(run),
        "template": "chatml",
    }

    assert export_of(given, tmp_path / "out").is_dir()


def test_another_base_than_the_adapter_names_is_refused(tmp_path: Path, base: Path):
    run = make_run(tmp_path / "run", base)
    (run / "run.json").unlink()
    other = tiny.save(tmp_path / "other", tiny.make_llama(seed=3))
    given = {
        "model_name_or_path": str(other),
        "adapter_name_or_path": str(run),
        "template": "chatml",
    }

    with pytest.raises(ModelError, match=r"says that it was trained on .*base, whose weights"):
        export_of(given, tmp_path / "out")


def test_an_adapter_of_another_size_is_refused(tmp_path: Path, base: Path):
    run = make_run(tmp_path / "run", base)
    (run / "run.json").unlink()
    shutil.rmtree(base)
    other = tiny.save(tmp_path / "other", tiny.make_llama(intermediate_size=96))
    given = {
        "model_name_or_path": str(other),
        "adapter_name_or_path": str(run),
        "template": "chatml",
    }

    with pytest.raises(ModelError, match="does not fit the model"):
        export_of(given, tmp_path / "out")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


def test_packed_weights_are_refused():
    config = LlamaConfig(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})

    with pytest.raises(ModelError, match="holds 4-bit packed weights"):
        check_plain(config, ModelArguments(model_name_or_path="somebody/packed"))


def test_any_layer_that_learned_changes_the_fingerprint(base: Path):
    before = fingerprint_weights(str(base))
    model = tiny.make_llama()
    model.model.layers[1].mlp.up_proj.weight.data += 1e-3
    model.save_pretrained(base)

    after = fingerprint_weights(str(base))

    assert before.keys() == after.keys() == {"model.safetensors"}
    assert before != after
    assert fingerprint_weights("somebody/base") == {}


def test_a_base_without_record_is_taken_with_a_word(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "run", base)
    (run / "run.json").unlink()
    config = json.loads((run / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "owner/original"
    (run / "adapter_config.json").write_text(json.dumps(config))
    given = {
        "model_name_or_path": str(base),
        "adapter_name_or_path": str(run),
        "template": "chatml",
    }

    export_of(given, tmp_path / "out")

    assert "trained on owner/original, which is not here to compare" in capsys.readouterr().err
    assert arguments_for(given, tmp_path / "x").exporting.export_size == 5
