from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.commands.chat import read_arguments, run
from luthier.errors import ArgumentsError, LuthierError, MissingArguments


def make_run(folder: Path) -> Path:
    folder.mkdir()
    arguments = {
        "model_name_or_path": "owner/base",
        "template": "qwen",
        "default_system": "[Be brief]\nplease: a=b",
        "do_train": True,
        "dataset": ["user", "more"],
        "learning_rate": 1e-4,
        "temperature": 0.5,
        "output_dir": "saves/x",
    }
    record = {"arguments": arguments, "working_directory": str(folder)}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_run_folder_stands_for_what_the_run_was_given(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run=1")  # a name that looks like a setting is a path all the same

    arguments = read_arguments([f"{folder}/", "--max_new_tokens", "7", "temperature=0.2"])

    assert arguments.model.model_name_or_path == "owner/base"
    assert [Path(name) for name in arguments.model.adapter_name_or_path] == [folder]
    assert arguments.data.template == "qwen"
    assert arguments.data.default_system == "[Be brief]\nplease: a=b"
    assert arguments.data.dataset == ("user", "more")
    assert arguments.generating.max_new_tokens == 7
    assert arguments.generating.temperature == 0.2


def test_a_training_configuration_is_accepted(tmp_path: Path) -> None:
    config = tmp_path / "sft.yaml"
    config.write_text(
        "model_name_or_path: owner/base\nstage: sft\ndo_train: true\ndataset: user\n"
        "template: qwen\noutput_dir: saves/x\nplot_loss: true\n",
        encoding="utf-8",
    )

    arguments = read_arguments([str(config), "do_sample=false"])

    assert arguments.model.model_name_or_path == "owner/base"
    assert arguments.generating.do_sample is False


def test_without_a_model_the_three_ways_are_shown() -> None:
    with pytest.raises(MissingArguments, match="luthier chat RUN_FOLDER"):
        read_arguments([])


def test_wrong_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LuthierError, match="no such folder"):
        read_arguments([str(tmp_path / "nothing")])
    with pytest.raises(ArgumentsError, match="temperature"):
        read_arguments(["--model_name_or_path", "owner/base", "--temperatur", "1"])


def test_what_is_absent_is_said_before_anything_is_loaded(
    tmp_path: Path, llama_folder: Path
) -> None:
    config = tmp_path / "chat.yaml"
    config.write_text(
        f"model_name_or_path: {llama_folder}\nadapter_name_or_path: ./nowhere\ntemplate: qwenn\n",
        encoding="utf-8",
    )

    with pytest.raises(ArgumentsError) as caught:
        run([str(config), "temperatur=1"])

    assert len(caught.value.problems) == 3
    assert "nowhere does not exist" in str(caught.value)
    assert f"{config}:3: template 'qwenn' is unknown. Did you mean 'qwen'" in str(caught.value)


def test_help_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--help"]) == 0

    assert "luthier chat CONFIG.yaml" in capsys.readouterr().out


def test_the_command_is_known_without_loading_anything_heavy() -> None:
    code = (
        "import sys, luthier.commands.chat as c; c.read_arguments(['--model_name_or_path', 'x']); "
        "print(c.SUMMARY, {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules))"
    )

    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert shown.strip().endswith("set()")


def test_what_a_run_trained_answers_a_piped_line(
    tmp_path: Path,
    llama_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tests import tiny

    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama_folder),
        LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False),
    ).eval()
    tuned.save_pretrained(tmp_path)
    given = {
        "model_name_or_path": str(llama_folder),
        "template": "qwen",
        "default_system": "Be brief.",
    }
    record = {"arguments": given, "working_directory": str(tmp_path)}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n"))

    code = run([str(tmp_path), "do_sample=false", "max_new_tokens=8", "infer_dtype=float32"])

    tokenizer = tiny.make_tokenizer()
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    answered = tuned.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(answered[0, ids.shape[1] :], skip_special_tokens=True)
    assert code == 0
    assert capsys.readouterr().out == expected + "\n"
