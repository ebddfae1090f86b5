from __future__ import annotations

from pathlib import Path

import pytest

from luthier.arguments.parse import parse_dict
from luthier.cli import main
from luthier.commands.chat import read_arguments
from luthier.errors import ArgumentsError
from tests.exporting.making import make_run


def test_a_run_folder_becomes_a_model_folder(
    tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "run", llama_folder)

    code = main(["export", str(run), f"export_dir={tmp_path / 'out'}", "--export_size", "2"])

    assert code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_exit_code_is_the_errors(tmp_path: Path, llama_folder: Path):
    (tmp_path / "out" / "x").mkdir(parents=True)
    run = make_run(tmp_path / "run", llama_folder)

    assert main(["export", str(run), f"export_dir={tmp_path / 'out'}"]) == 2
    assert main(["export", str(run)]) == 2
    assert main(["export"]) == 2


@pytest.mark.parametrize(
    ("text", "export_dir", "adapters"),
    [
        (
            "model_name_or_path: owner/base\nadapter_name_or_path: saves/x\n"
            "template: qwen3_nothink\nexport_dir: models/merged\nexport_size: 5\n",
            "models/merged",
            ("saves/x",),
        ),
        (
            "model_name_or_path: owner/full\ntemplate: llama3\ninfer_dtype: bfloat16\n"
            "export_dir: output/full\nexport_size: 2\n",
            "output/full",
            (),
        ),
    ],
)
def test_configurations_of_llama_factory_mean_the_same(
    tmp_path: Path, text: str, export_dir: str, adapters: tuple[str, ...]
):
    config = tmp_path / "merge.yaml"
    common = "trust_remote_code: true\nexport_device: cpu\nexport_legacy_format: false\n"
    config.write_text(text + common, encoding="utf-8")

    arguments = read_arguments([str(config)], purpose="export")

    assert arguments.exporting.export_dir == export_dir
    assert arguments.model.adapter_name_or_path == adapters
    assert not [note for note in arguments.notes if " = " not in note]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("export_legacy_format=true", "Only safetensors are written"),
        ("export_quantization_bit=4", "GPTQ is not in this version"),
        ("export_size=0", "export_size"),
    ],
)
def test_what_is_not_done_is_said(setting: str, said: str):
    words = ["--model_name_or_path", "x", "export_dir=y", setting]

    with pytest.raises(ArgumentsError, match=said):
        read_arguments(words, purpose="export")


def test_a_training_says_that_it_exports_nothing():
    given = {"model_name_or_path": "x", "do_train": True, "dataset": "d", "output_dir": "o"}

    arguments = parse_dict(given | {"export_dir": "y"})

    assert "export_dir: no effect here; `luthier export` reads it" in arguments.notes
