"""configurations as people get them wrong: each answer names the mend, at once, before any load"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import cli

RIGHT = {
    "stage": "sft",
    "do_train": "true",
    "finetuning_type": "lora",
    "lora_rank": "8",
    "dataset": "songs",
    "template": "qwen",
    "output_dir": "saves/run",
}

WRONG = {
    "a typo": ({"lora_rnak": "16"}, 9, "the argument lora_rnak is unknown. Did you mean lora_rank"),
    "a wrong type": (
        {"lora_rank": "sixteen"},
        5,
        "lora_rank is 'sixteen'; expected a whole number of at least 1",
    ),
    "a wrong choice": (
        {"finetuning_type": "lorra"},
        4,
        "finetuning_type is 'lorra'; expected one of freeze, full, lora,",
    ),
    "a bad pair": ({"bf16": "true", "fp16": "true"}, 9, "fp16 are different precisions; keep one"),
    "a missing file": ({"dataset": "songs.jsonl"}, None, "'songs.jsonl': there is no such file"),
    "an unknown data set": ({"dataset": "snogs"}, None, "'snogs' is unknown: it is not in"),
    "an unknown template": (
        {"template": "qwenn"},
        7,
        "template 'qwenn' is unknown. Did you mean 'qwen'",
    ),
    "an absent package": (
        {"report_to": "clearml"},
        9,
        "report_to: clearml needs the package 'clearml', which is not installed: pip install",
    ),
    "an absent output_dir": ({"output_dir": None}, None, "arguments are required: output_dir"),
    "a duplicate key": (
        {"learning_rate": "1.0e-4\nlearning_rate: 1.0e-5"},
        10,
        "learning_rate stands twice, here and in line",
    ),
}
"""What is wrong -> the lines changed, the line that is named, the sentence."""


@pytest.fixture
def folder(tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(llama_folder)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "songs.json").write_text('[{"instruction": "a", "output": "b"}]')
    info = {"songs": {"file_name": "songs.json"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, changes: dict[str, str | None]) -> Path:
    settings = {"model_name_or_path": "model", **RIGHT, **changes}
    lines = [f"{name}: {value}\n" for name, value in settings.items() if value is not None]
    config = folder / "run.yaml"
    config.write_text("".join(lines))
    return config


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    from luthier.training import preflight, run

    asked: list[object] = []
    monkeypatch.setattr(run, "run", lambda arguments, **_: asked.append(arguments))
    monkeypatch.setattr(preflight, "is_installed", lambda module: module != "clearml")
    return asked


def test_the_right_configuration_is_run(folder: Path, loads: list[object]) -> None:
    assert cli.main(["train", str(write(folder, {}))]) == 0
    assert len(loads) == 1


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_configuration_is_one_sentence_with_its_mend(
    folder: Path, loads: list[object], capsys: pytest.CaptureFixture[str], changes
) -> None:
    settings, line, sentence = changes
    config = write(folder, settings)

    code = cli.main(["train", str(config)])

    said = capsys.readouterr().err
    assert code == 2
    assert not loads
    assert said.startswith("error: ")
    assert sentence in said
    assert line is None or f"{config}:{line}" in said
    assert "problems in the configuration" not in said


def test_all_of_them_are_said_at_once_and_nothing_heavy_is_imported(folder: Path) -> None:
    changes: dict[str, str | None] = {}
    for settings, _, _ in WRONG.values():
        changes |= settings
    changes["dataset"] = "snogs, songs.jsonl"
    config = write(folder, changes)
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: find(name, *a) if name != 'clearml' "
        "else None\n"
        "from luthier import cli\n"
        f"code = cli.main(['train', {str(config)!r}])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'accelerate'} & set(sys.modules)\n"
        "print(code, sorted(heavy))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "2 []\n"
    assert done.stderr.startswith("error: 10 problems in the configuration:\n")
    assert [what for what, (_, _, text) in WRONG.items() if text not in done.stderr] == []


def test_a_dict_from_python_is_answered_in_the_same_way(folder: Path) -> None:
    import luthier
    from luthier.errors import ArgumentsError

    wrong = {"model_name_or_path": "model", "lora_rnak": 8, "template": "qwenn", "dataset": "snogs"}

    with pytest.raises(ArgumentsError) as caught:
        luthier.train(RIGHT | wrong)

    assert len(caught.value.problems) == 3
