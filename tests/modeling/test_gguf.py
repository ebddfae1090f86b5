"""a GGUF file is read as the model and the tokenizer that were written into it"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.modeling.loader import load_model
from luthier.modeling.source import check_model
from luthier.modeling.tokenizer import load_tokenizer
from tests import tiny
from tests.modeling.adapters.test_lora import logits
from tests.modeling.making import make_arguments

gguf = pytest.importorskip("gguf", reason="the extra luthier[gguf] is not installed")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}

TEXTS = (
    "0 1 2 10 11 12 sings",
    "<|im_start|>user\nWho are you?<|im_end|>\n",
    "hide glue: ½ of it, 1234567890, 第三 é\n\n  the belly",
)


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head in the order of llama.cpp: its two rotary halves in turns."""
    out, hidden = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, hidden).swapaxes(1, 2).reshape(out, hidden)


def write_gguf(file: Path, model, tokenizer, pre: str) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    read = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = sorted(read["model"]["vocab"], key=read["model"]["vocab"].get)
    special = {token["content"] for token in read["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types([3 if token in special else 1 for token in vocab])
    writer.add_token_merges([" ".join(pair) for pair in read["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        short = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }.get(name)
        if short is None:
            _, _, layer, rest = name.split(".", 3)
            module = rest.removesuffix(".weight")
            short = f"blk.{layer}.{NAMES[module]}.weight"
            if module.endswith("q_proj"):
                weight = interleaved(weight, config.num_attention_heads)
            elif module.endswith("k_proj"):
                weight = interleaved(weight, config.num_key_value_heads)
        writer.add_tensor(short, weight.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model():
    return tiny.make_llama(vocab_size=len(tiny.make_tokenizer()), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, model) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, model, tiny.make_tokenizer(), "smollm")
    return path


def test_a_gguf_file_passes_the_first_look(file: Path):
    assert not list(check_model(make_arguments(model_name_or_path=str(file)).model))


def test_the_tokenizer_gives_the_ids_it_was_written_with(file: Path):
    expected = tiny.make_tokenizer()
    backend = expected.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )

    tokenizer = load_tokenizer(make_arguments(model_name_or_path=str(file)).model)

    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]
    assert tokenizer.chat_template == expected.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == (expected.eos_token, expected.pad_token)


def test_other_ways_of_splitting_are_left_alone(tmp_path: Path, model):
    file = tmp_path / "plain.gguf"
    write_gguf(file, model, tiny.make_tokenizer(), "gpt-2")

    tokenizer = load_tokenizer(make_arguments(model_name_or_path=str(file)).model)

    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == tiny.make_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_model_learns_and_is_saved_as_a_plain_one(
    file: Path, model, tmp_path: Path, kind: str, capsys
):
    arguments = make_arguments(model_name_or_path=str(file), finetuning_type=kind)
    tokenizer = load_tokenizer(arguments.model)

    loaded = load_model(arguments, tokenizer, is_trainable=True)

    assert "de-quantizing" not in capsys.readouterr().err
    torch.testing.assert_close(logits(loaded), logits(model))
    loaded.train()(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    plain = loaded.merge_and_unload() if kind == "lora" else loaded
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model))
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    ids = AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0])["input_ids"]
    assert ids == tokenizer(TEXTS[0])["input_ids"]


def test_answers_are_computed_in_the_dtype_asked_for(file: Path):
    arguments = make_arguments(model_name_or_path=str(file), infer_dtype="bfloat16")

    loaded = load_model(arguments, load_tokenizer(arguments.model), is_trainable=False)

    assert loaded.dtype == torch.bfloat16
