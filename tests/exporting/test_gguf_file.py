"""what a GGUF file says is what the model that it was made of says"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from luthier.arguments.model import ModelArguments
from luthier.errors import ModelError
from luthier.exporting.gguf_file import BOUNDS, check_gguf, read_back, write_gguf
from luthier.exporting.gguf_tokenizer import PATTERNS, TEXTS, _splittings, describe
from luthier.exporting.proof import Probe
from luthier.modeling.tokenizer import load_tokenizer
from tests import tiny
from tests.exporting.making import export_of, logits, make_run
from tests.exporting.test_run import SMALL, model_of

gguf = pytest.importorskip("gguf", reason="the extra luthier[gguf] is not installed")


def model_by(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gemma3":
        theta = {"rope_type": "default", "rope_theta": 1e4}
        config = Gemma3TextConfig(
            **(SMALL | {"num_hidden_layers": 6, "sliding_window": 16, "head_dim": 256}),
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": theta,
            },
        )
        return Gemma3ForCausalLM(config)
    if kind == "phi3":
        return Phi3ForCausalLM(Phi3Config(**(SMALL | {"sliding_window": None})))
    if kind == "qwen3":  # transformers does not read the size of its heads, 128 by default
        return model_of("qwen3", head_dim=128)
    if kind == "gemma2":  # nor what queries are divided by
        return model_of("gemma2", head_dim=256, query_pre_attn_scalar=256)
    return model_of(kind)


def write(folder: Path, model: Any, kind: str = "f32", tokenizer: Any = None) -> Path:
    """A file that stands for itself, made of a folder."""
    tiny.save(folder / "model", model, tokenizer)
    (folder / "alone").mkdir()
    return write_gguf(folder / "model", folder / "alone" / f"tiny-{kind}.gguf", kind)


def load(file: Path) -> Any:
    """The model as transformers makes it of the file alone."""
    return AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_float32_comes_back_without_a_difference(tmp_path: Path, kind: str):
    model = model_by(kind)

    file = write(tmp_path, model)

    again = load(file)
    read_back(tmp_path / "model", file, "f32", [Probe((3, 4, 5, 6, 7), (8, 9))])
    names = set(again.state_dict())
    assert names == set(model.state_dict())
    assert all(torch.equal(each, model.state_dict()[n]) for n, each in again.state_dict().items())
    assert (logits(again) - logits(model)).abs().max() == 0


@pytest.mark.parametrize("kind", [kind for kind in BOUNDS if kind != "q4_k_m"])
def test_each_kind_is_within_its_bound(tmp_path: Path, kind: str):
    model = tiny.make_llama(hidden_size=64, intermediate_size=96, tie_word_embeddings=False)
    file = write(tmp_path, model, kind)

    again = load(file)

    share = {"f32": 0, "f16": 1e-3, "bf16": 0.01, "q8_0": 0.02}.get(kind, 0.25)
    apart = (logits(again) - logits(model)).norm() / logits(model).norm()
    assert apart <= share
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=str(file)))
    own = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == own.chat_template
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [
        own(text)["input_ids"] for text in TEXTS
    ]
    read_back(tmp_path / "model", file, kind, [Probe((3, 4, 5, 6, 7), (8, 9))])


def test_what_is_kept_finer_stays_so(tmp_path: Path):
    model = tiny.make_llama(hidden_size=64, intermediate_size=48, tie_word_embeddings=False)
    file = write(tmp_path, model, "q4_0")

    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(file).tensors}

    assert {kinds["token_embd.weight"], kinds["output.weight"]} == {"F16"}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_gate.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # rows of 48 are no multiple of 32


def test_a_file_whose_weights_are_others_is_not_taken(tmp_path: Path):
    file = write(tmp_path, tiny.make_llama())
    model = tiny.make_llama()
    model.model.layers[0].self_attn.q_proj.weight.data.roll(1, 0)
    torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.weight)
    model.save_pretrained(tmp_path / "model")

    with pytest.raises(ModelError, match="Nothing was published"):
        read_back(tmp_path / "model", file, "f32", [Probe((3, 4, 5, 6, 7))])


def test_the_factors_of_long_contexts_are_those_of_the_model(tmp_path: Path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = LlamaForCausalLM(LlamaConfig(**(SMALL | {"head_dim": 32}), rope_parameters=rope))

    file = write(tmp_path, model)

    tensors = {each.name: each.data for each in gguf.GGUFReader(file).tensors}
    plain = 1 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    ours = plain / torch.tensor(tensors["rope_freqs.weight"])
    torch.testing.assert_close(ours, model.model.rotary_emb.inv_freq, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_written_is_named_with_what_can():
    config = tiny.make_gpt2().config

    with pytest.raises(ModelError, match="model_type gpt2 cannot be written"):
        check_gguf(config, "f16", scores=False)
    with pytest.raises(ModelError, match="llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3"):
        check_gguf(config, "f16", scores=False)
    with pytest.raises(ModelError, match="query_pre_attn_scalar"):
        check_gguf(model_of("gemma2", query_pre_attn_scalar=5).config, "f16", scores=False)
    with pytest.raises(ModelError, match="a reward model"):
        check_gguf(tiny.make_llama().config, "f16", scores=True)


def test_k_kinds_need_a_program_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    config = tiny.make_llama().config
    with pytest.raises(ModelError, match="llama-quantize, which is not on the PATH"):
        check_gguf(config, "q4_k_m", scores=False)
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$3" = Q4_K_M ] || exit 3\n/bin/cp "$1" "$2"\n')
    program.chmod(0o755)

    file = write(tmp_path, tiny.make_llama(), "q4_k_m")

    assert [path.name for path in file.parent.iterdir()] == ["tiny-q4_k_m.gguf"]
    program.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    with pytest.raises(ModelError, match="ended with 1: no room"):
        write_gguf(tmp_path / "model", tmp_path / "again.gguf", "q4_k_m")


@pytest.mark.parametrize("prepend", ["first", "always", "normal"])
def test_sentencepiece_is_read_as_it_was_written(tmp_path: Path, prepend: str):
    tokenizer = tiny.make_sentencepiece(prepend)
    model = tiny.make_llama(vocab_size=len(tokenizer) + 5)
    file = write(tmp_path, model, tokenizer=tokenizer)

    read_back(tmp_path / "model", file, "f32", [Probe((300, 301, 302, 303))])

    said = describe(tokenizer, len(tokenizer) + 5)
    assert said.model == "llama"
    assert said.adds_space
    assert said.tokens[-1].startswith("[PAD")
    assert said.kinds.count(6) == 256


def test_ways_of_splitting_are_told_apart_and_named_as_others_name_them():
    pieces = [
        [splitting.pre_tokenize_str(text) for text in TEXTS] for splitting in _splittings().values()
    ]
    assert all(one != other for at, one in enumerate(pieces) for other in pieces[:at])

    known = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    from tokenizers import Regex, pre_tokenizers

    for name in PATTERNS:
        theirs = pre_tokenizers.Split(Regex(known.GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")
        ours = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
        assert [ours.pre_tokenize_str(text) for text in TEXTS] == [
            theirs.pre_tokenize_str(text) for text in TEXTS
        ]


def test_an_unknown_way_of_splitting_is_a_sentence():
    from tokenizers import pre_tokenizers

    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )

    with pytest.raises(ModelError, match="splits text in none of the ways"):
        describe(tokenizer, 400)


def test_a_run_becomes_a_file_with_its_stops(tmp_path: Path, llama_folder: Path):
    run = make_run(tmp_path / "run", llama_folder)

    folder = export_of(run, tmp_path / "mine", gguf="q8_0")

    reader = gguf.GGUFReader(folder / "mine-q8_0.gguf")
    own = AutoTokenizer.from_pretrained(folder)
    stop = own.convert_tokens_to_ids("<|im_end|>")
    value = {name: field.contents() for name, field in reader.fields.items()}
    assert value["tokenizer.ggml.eos_token_id"] == stop == own.eos_token_id
    assert value["tokenizer.chat_template"] == own.chat_template
    assert value["general.name"] == "mine-q8_0"
    assert str(tmp_path).encode() not in (folder / "mine-q8_0.gguf").read_bytes()
    assert AutoConfig.from_pretrained(folder).model_type == "llama"
    shutil.rmtree(folder)
