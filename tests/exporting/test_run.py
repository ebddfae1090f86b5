"""what is exported is what was trained, to everybody who reads the folder"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.checkpoints.pretrained import PretrainedFiles
from luthier.checkpoints.verify import verify
from luthier.errors import ModelError
from luthier.exporting import run as exporting
from tests import tiny
from tests.exporting.making import export_of, logits, make_run

SMALL = tiny.GROUPED_QUERIES | {"vocab_size": 400, "head_dim": 8}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "lora_rank": 4},
    "dora": {"use_dora": True},
    "pissa": {"pissa_init": True, "pissa_iter": 4},
    "saved whole": {"additional_target": "embed_tokens,lm_head"},
    "new tokens": {"add_special_tokens": "<tool>,</tool>"},
    "embeddings": {"lora_target": "embed_tokens,q_proj"},
}

TIED = ("lora", "dora", "new tokens", "embeddings")
"""Those in which it matters whether embeddings and head are one matrix."""


def model_of(kind: str, **values: Any) -> Any:
    torch.manual_seed(0)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**(SMALL | values)))
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**(SMALL | {"sliding_window": None} | values)))
    if kind == "gemma2":
        window = {"sliding_window": 16, "query_pre_attn_scalar": 8}
        return Gemma2ForCausalLM(Gemma2Config(**(SMALL | window | values)))
    return {"llama": tiny.make_llama, "qwen2": tiny.make_qwen2}[kind](**values)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", llama_folder)


def trained(run: Path, base: Path, tokens: int = 0) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    return PeftModel.from_pretrained(model, run)


@pytest.mark.parametrize(
    ("method", "is_tied"),
    [*((each, False) for each in METHODS), *((each, True) for each in TIED)],
)
def test_it_says_what_base_and_adapter_say(tmp_path: Path, method: str, is_tied: bool):
    base = tiny.save(tmp_path / "base", tiny.make_llama(tie_word_embeddings=is_tied))
    run = make_run(tmp_path / "run", base, **METHODS[method])

    folder = export_of(run, tmp_path / "out")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(run).get_vocab()
    rows = 448 if method == "new tokens" else 0
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(
        logits(loaded), logits(trained(run, base, rows)), atol=1e-5, rtol=1e-5
    )
    assert loaded.config.vocab_size == loaded.get_input_embeddings().weight.shape[0]
    assert loaded.config.tie_word_embeddings is is_tied


def test_adapters_are_merged_one_after_the_other(tmp_path: Path, run: Path, llama_folder: Path):
    first = export_of(run, tmp_path / "first")
    shutil.copy(llama_folder / "tokenizer_config.json", first)
    second = make_run(tmp_path / "second", first, seed=2)
    given = {
        "model_name_or_path": str(llama_folder),
        "adapter_name_or_path": f"{run},{second}",
        "template": "chatml",
    }
    (second / "run.json").unlink()  # it was trained on the merged first one
    config = json.loads((second / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (second / "adapter_config.json").write_text(json.dumps(config))

    both = export_of(given, tmp_path / "both")

    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(first), second)
    ours = logits(AutoModelForCausalLM.from_pretrained(both))
    torch.testing.assert_close(ours, logits(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_weights_come_back_as_they_were(tmp_path: Path, kind: str):
    model = model_of(kind)
    base = tiny.save(tmp_path / "base", model)

    folder = export_of({"model_name_or_path": str(base), "template": "chatml"}, tmp_path / "out")

    again = AutoModelForCausalLM.from_pretrained(folder)
    assert type(again) is type(model)
    assert all(torch.equal(each, again.state_dict()[n]) for n, each in model.state_dict().items())


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize(("stored", "asked"), [("bfloat16", "auto"), ("float32", "float16")])
def test_half_precision_is_rounded_once(
    tmp_path: Path, stored: str, asked: str, is_slow: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "is_emulated", lambda dtype, use_cpu: is_slow)
    model = tiny.make_llama().to(getattr(torch, stored))
    base = tiny.save(tmp_path / "base", model)
    run = make_run(tmp_path / "run", base)

    folder = export_of(run, tmp_path / "out", export_dtype=asked)

    weights = load_file(folder / "model.safetensors")
    exact = trained(run, base).float().merge_and_unload().state_dict()
    dtype = torch.bfloat16 if stored == "bfloat16" else torch.float16
    assert {each.dtype for each in weights.values()} == {dtype}
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype)[6:]
    share = [(each == exact[name].to(dtype)).float().mean() for name, each in weights.items()]
    assert min(share) > 0.99  # the sum in another order rounds a few to the other side


def test_large_models_are_cut_into_files(tmp_path: Path, run: Path, monkeypatch):
    write = PretrainedFiles.write

    def small(self: PretrainedFiles, *args: Any, shard_size: str, **options: Any) -> None:
        assert shard_size == "3GB"
        write(self, *args, shard_size="100KB", **options)

    monkeypatch.setattr(PretrainedFiles, "write", small)

    folder = export_of(run, tmp_path / "out", export_size=3)

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1


def test_the_folder_says_how_it_is_used(run: Path, tmp_path: Path):
    folder = export_of(run, tmp_path / "out")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    stops = generation["eos_token_id"]
    card = (folder / "README.md").read_text()
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run).chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (
        stops if isinstance(stops, list) else [stops]
    )
    assert "library_name: transformers" in card
    assert "# out" in card
    assert not (folder / "adapter_config.json").exists()
    assert not verify(folder)


def test_a_reward_model_keeps_its_score(tmp_path: Path, llama_folder: Path):
    given = {"stage": "rm", "dataset": "preferences"}
    run = make_run(tmp_path / "run", llama_folder, **given)

    folder = export_of(run, tmp_path / "out")

    plain = AutoModelForSequenceClassification.from_pretrained(
        llama_folder, num_labels=1, pad_token_id=0
    )
    expected = logits(PeftModel.from_pretrained(plain, run))
    ours = logits(AutoModelForSequenceClassification.from_pretrained(folder))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (folder / "value_head.safetensors").is_file()


@pytest.mark.parametrize("wrong", ["unmerged", "twice"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_the_trained_model_is_not_published(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, dtype: str
):
    right = exporting.merge_adapter

    def merge(adapted: Any) -> Any:
        if wrong == "unmerged":
            return adapted.unload()
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.data *= 2
        return right(adapted)

    monkeypatch.setattr(exporting, "merge_adapter", merge)

    with pytest.raises(ModelError, match="Nothing was published"):
        export_of(run, tmp_path / "out", export_dtype=dtype, infer_dtype=dtype)

    assert not list(tmp_path.iterdir())


def test_what_the_disk_has_changed_is_not_published(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    write = exporting.write_card

    def damage(place: Path, *args: Any, **options: Any) -> Path:
        with (place / "model.safetensors").open("r+b") as file:
            file.seek(-4000, 2)
            file.write(bytes(8))
        return write(place, *args, **options)

    monkeypatch.setattr(exporting, "write_card", damage)

    with pytest.raises(ModelError, match="not what was in memory"):
        export_of(run, tmp_path / "out")

    assert not list(tmp_path.iterdir())


def test_questions_stand_in_for_data_that_is_gone(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
):
    export_of(run, tmp_path / "out", dataset_dir=str(tmp_path / "nowhere"))

    said = capsys.readouterr().err
    assert "the run's data is not at hand" in said
    assert "8 prompts of questions of luthier's own" in said


def test_an_upload_that_fails_leaves_the_folder(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    sent: list[dict[str, Any]] = []

    def create(self: HfApi, name: str, **options: Any) -> SimpleNamespace:
        assert options["private"]
        return SimpleNamespace(repo_id=name)

    def upload(self: HfApi, **options: Any) -> None:
        sent.append(options)
        if len(sent) > 1:
            raise OSError("no route")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)

    folder = export_of(run, tmp_path / "one", export_hub_model_id="me/mine")
    with pytest.raises(ModelError, match="me/mine cannot be uploaded: no route"):
        export_of(run, tmp_path / "two", export_hub_model_id="me/mine")

    assert [each["folder_path"] for each in sent] == [folder, tmp_path / "two"]
    assert not verify(tmp_path / "two")


def test_a_tokenizer_that_cannot_be_read_is_a_sentence(tmp_path: Path, llama_folder: Path):
    run = make_run(tmp_path / "run", llama_folder)
    (run / "tokenizer.json").write_text("{")

    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        export_of(run, tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_numbers_that_are_none_is_not_merged(
    tmp_path: Path, llama_folder: Path, value: float
):
    run = make_run(tmp_path / "run", llama_folder)
    weights = load_file(run / "adapter_model.safetensors")
    next(iter(weights.values())).view(-1)[0] = value
    save_file(weights, run / "adapter_model.safetensors")

    with pytest.raises(ModelError, match=r"numbers that are none|cannot be merged"):
        export_of(run, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_program_leaves_with_the_template_that_is_named(
    tmp_path: Path, run: Path, llama_folder: Path
):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "run.json").unlink()
    given = {"model_name_or_path": str(llama_folder), "adapter_name_or_path": str(other)}

    folder = export_of(given | {"template": "zephyr"}, tmp_path / "out")

    turn = [{"role": "user", "content": "Which wood?"}]
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(turn, tokenize=False)
    assert "<|user|>\nWhich wood?" in text
    again = export_of(run, tmp_path / "again", template="zephyr")
    assert (again / "chat_template.jinja").read_text() == (
        folder / "chat_template.jinja"
    ).read_text()
