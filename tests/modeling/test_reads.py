"""logits at chosen positions are those of the whole forward pass, and so are the gradients"""

from __future__ import annotations

import peft
import pytest
import torch
import transformers

from luthier.modeling.reads import read_logits
from tests import tiny

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ARCHITECTURES = {
    "llama": lambda: tiny.make_llama(vocab_size=97),
    "llama, tied": lambda: tiny.make_llama(vocab_size=97, tie_word_embeddings=True),
    "qwen2": lambda: tiny.make_qwen2(vocab_size=97),
    "gpt2": lambda: tiny.make_gpt2(vocab_size=97),
    "gemma2, soft-capped": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SMALL, final_logit_softcapping=3.0)
    ),
    "cohere, scaled": lambda: transformers.CohereForCausalLM(
        transformers.CohereConfig(
            **{name: value for name, value in SMALL.items() if name != "head_dim"}, logit_scale=0.3
        )
    ),
    "granite, scaled": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(
            **{name: value for name, value in SMALL.items() if name != "head_dim"},
            logits_scaling=4.0,
        )
    ),
}

IDS = torch.tensor([[5, 9, 11, 4, 8], [7, 3, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
SOURCES = torch.tensor([1, 3, 5, 6])


def gradients(model: torch.nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits, torch.tensor([2, 4, 6, 8])).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_equal(model: torch.nn.Module) -> None:
    whole = model(input_ids=IDS, attention_mask=MASK).logits.flatten(0, 1)[SOURCES]
    expected = gradients(model, whole)

    read = read_logits(model, IDS, MASK, SOURCES)
    found = gradients(model, read)

    # the head multiplies fewer rows, so float32 sums may be blocked otherwise
    torch.testing.assert_close(read, whole, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reads_are_those_of_the_whole_forward_pass(name):
    torch.manual_seed(0)

    check_equal(ARCHITECTURES[name]().eval())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["frozen head", "adapted head", "trained head"],
)
def test_reads_go_through_an_adapters_head(options):
    torch.manual_seed(0)
    model = peft.get_peft_model(
        tiny.make_llama(vocab_size=97),
        peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **options),
    )

    check_equal(model.eval())


def test_the_head_sees_only_the_reads_and_is_left_without_a_hook():
    model = tiny.make_llama(vocab_size=97)
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda head, inputs, output: seen.append(output.shape))

    read_logits(model, IDS, MASK, SOURCES)
    whole = model(input_ids=IDS).logits

    assert seen == [(1, 4, 97), (2, 5, 97)]
    assert whole.shape == (2, 5, 97)


def test_a_head_that_is_shown_other_rows_leaves_the_logits_whole():
    class Flat(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model
            self.get_output_embeddings = model.get_output_embeddings

        def forward(self, input_ids, attention_mask, use_cache):
            hidden = self.model.model(input_ids, attention_mask=attention_mask).last_hidden_state
            logits = self.model.lm_head(hidden.flatten(0, 1)).unflatten(0, input_ids.shape)
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    model = tiny.make_llama(vocab_size=97)

    torch.testing.assert_close(
        read_logits(Flat(model), IDS, MASK, SOURCES), read_logits(model, IDS, MASK, SOURCES)
    )
