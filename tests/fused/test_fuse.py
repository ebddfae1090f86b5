from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.fused.fuse import fuse, unfuse
from luthier.fused.layers import FusedForward
from tests.tiny import GROUPED_QUERIES, make_gpt2, make_llama, make_qwen2

VOCABULARY = 96
SMALL = GROUPED_QUERIES | {"vocab_size": VOCABULARY}

MODELS = {
    "llama": lambda: make_llama(VOCABULARY),
    "qwen2": lambda: make_qwen2(VOCABULARY),
    "gpt2": lambda: make_gpt2(VOCABULARY),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4)),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    ),
    "glm4": lambda: Glm4ForCausalLM(Glm4Config(**SMALL, head_dim=8)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SMALL)),
    "deepseek": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **(SMALL | {"num_key_value_heads": 4}),
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            moe_intermediate_size=16,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        )
    ),
}
"""One of each way to write the layers that are replaced."""

IDS = torch.randint(1, VOCABULARY, (2, 19), generator=torch.Generator().manual_seed(1))


def with_lora(model, **options) -> PeftModel:
    torch.manual_seed(1)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "init_lora_weights": False,
        "fan_in_fan_out": model.config.model_type == "gpt2",
        "task_type": "CAUSAL_LM",
    }
    adapted = get_peft_model(model, LoraConfig(**(settings | options)))
    adapted.train()
    return adapted


def run(model, ids=IDS, **options):
    """The loss, and the gradients of what learns."""
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False, **options).loss
    loss.backward()
    named = model.named_parameters()
    return loss.detach(), {name: each.grad for name, each in named if each.grad is not None}


def check(ours, theirs, close=2e-5):
    """The order of sums differs; behind random adapters small gradients are sums of large terms."""
    (loss, grads), (own_loss, own_grads) = ours, theirs
    assert loss.item() == pytest.approx(own_loss.item(), rel=1e-6)
    assert grads.keys() == own_grads.keys()
    largest = max(each.norm() for each in own_grads.values())
    for name, own in own_grads.items():
        assert (grads[name] - own).norm() <= close * own.norm() + 1e-7 * largest, name


def fused_layers(model) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(vars(module).get("forward"), FusedForward)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_model_has_the_same_loss_and_gradients(name):
    torch.manual_seed(0)
    model = with_lora(MODELS[name]())
    own = run(model)

    fused = fuse(model)

    assert fused.num_left == 0
    assert fused.counts["linear layers"] >= 8
    check(run(model), own)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "phi3", "olmo2"])
def test_a_fused_model_that_learns_whole_has_the_same_loss_and_gradients(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    own = run(model)

    fused = fuse(model)

    assert {"norms", "feed-forward layers", "rotary embeddings"} == set(fused.counts)
    check(run(model), own)


def test_a_llama_is_fused_everywhere():
    model = with_lora(make_llama(VOCABULARY))

    fused = fuse(model)

    said = "fused: 2 rotary embeddings, 14 linear layers, 2 feed-forward layers, 5 norms"
    assert str(fused) == said
    assert str(fuse(model)) == said


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same(use_reentrant):
    model = with_lora(make_llama(VOCABULARY))
    own = run(model)
    fuse(model)

    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()

    check(run(model), own)


def test_a_compiled_model_is_shown_its_own_forwards():
    model = with_lora(make_llama(VOCABULARY))
    own = run(model)
    fuse(model)
    seen = []

    def backend(graph, inputs):
        seen.append(graph.code)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    ours = compiled(input_ids=IDS, labels=IDS, use_cache=False).loss
    ours.backward()

    assert ours.item() == pytest.approx(own[0].item(), rel=1e-6)
    assert len(seen) == 1
    assert "autograd_function" not in seen[0]


def test_unfusing_leaves_no_trace():
    model = with_lora(make_llama(VOCABULARY))
    before = {name: set(vars(module)) for name, module in model.named_modules()}

    fuse(model)
    assert fused_layers(model)
    unfuse(model)

    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_a_copy_of_a_fused_model_computes_with_its_own_weights():
    model = with_lora(make_llama(VOCABULARY))
    fuse(model)

    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    expected = copy.deepcopy(other)
    unfuse(expected)

    check(run(other), run(expected))
    assert run(model)[0] != run(other)[0]


def test_what_is_saved_is_the_same_and_loads(tmp_path):
    model = with_lora(make_llama(VOCABULARY))
    names = list(model.state_dict())
    expected = run(model)
    fuse(model)

    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(VOCABULARY), tmp_path, is_trainable=True)

    check(run(loaded), expected)
    fuse(loaded)
    check(run(loaded), expected)


def logits(model, **options):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False, **options).logits


def test_disabling_merging_and_switching_adapters_are_seen():
    model = with_lora(make_llama(VOCABULARY))
    model.add_adapter(
        "other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    plain = copy.deepcopy(model)
    fuse(model)

    def check_now():
        assert torch.allclose(logits(model), logits(plain), atol=1e-5)

    check_now()
    with model.disable_adapter(), plain.disable_adapter():
        check_now()
    for each in (model, plain):
        each.set_adapter("other")
    check_now()
    for each in (model, plain):
        each.base_model.set_adapter(["default", "other"])
    check_now()
    for each in (model, plain):
        each.base_model.set_adapter("default")
        each.merge_adapter()
    check_now()
    for each in (model, plain):
        each.unmerge_adapter()
    names = ["default", "other"]
    model.eval(), plain.eval()
    ours, theirs = logits(model, adapter_names=names), logits(plain, adapter_names=names)
    assert torch.allclose(ours, theirs, atol=1e-5)
    model, plain = model.merge_and_unload(), plain.merge_and_unload()
    check_now()


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"lora_dropout": 0.3}, {"lora_bias": True}],
    ids=["dora", "dropout", "bias"],
)
def test_special_adapters_keep_the_forward_of_peft(options):
    model = with_lora(make_gpt2(VOCABULARY), **options)

    fused = fuse(model)

    assert fused.num_left == 8
    assert str(fused) == "fused: nothing; 8 LoRA layers keep peft's forward"


def test_dropout_stays_of_peft_while_the_rest_is_fused():
    model = with_lora(make_llama(VOCABULARY), lora_dropout=0.3)
    torch.manual_seed(5)
    own = run(model)

    fused = fuse(model)
    torch.manual_seed(5)

    check(run(model), own)
    assert fused.num_left == 14
    assert fused.counts == {"rotary embeddings": 2, "feed-forward layers": 2, "norms": 5}


def test_some_layers_with_adapters_and_some_without():
    model = with_lora(make_llama(VOCABULARY), target_modules=["q_proj", "v_proj", "down_proj"])
    own = run(model)

    fuse(model)

    check(run(model), own)


class OtherLinear(nn.Module):
    """A layer that stores its weight otherwise, as quantised ones do."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.codes, self.step = (linear.weight.detach() * 100).round().char(), 0.01

    def forward(self, x):
        return x @ (self.codes * self.step).t()


def test_a_base_layer_of_another_kind_keeps_its_forward():
    model = with_lora(make_llama(VOCABULARY))
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.base_layer = OtherLinear(module.base_layer)
    own = run(model)

    fused = fuse(model)

    assert fused.num_left == 14
    check(run(model), own)


def test_a_layer_that_somebody_listens_to_is_called():
    model = with_lora(make_llama(VOCABULARY))
    own = run(model)
    fuse(model)
    layer = model.base_model.model.model.layers[0]
    heard = []

    for module in (layer.mlp.gate_proj, layer.mlp.down_proj.base_layer, layer.self_attn.k_proj):
        module.register_forward_hook(lambda module, inputs, output: heard.append(output.shape[-1]))

    check(run(model), own)
    assert sorted(heard) == [16, 32, 64]


def test_a_layer_whose_forward_somebody_replaced_keeps_it():
    model = with_lora(make_llama(VOCABULARY))
    attention = model.base_model.model.model.layers[0].self_attn
    attention.q_proj.base_layer.forward = lambda x: torch.zeros(*x.shape[:-1], 32)
    attention.o_proj.forward = lambda x: 2 * x
    model.base_model.model.model.layers[1].mlp.up_proj.forward = lambda x: x.repeat(1, 1, 2)
    expected = run(model)

    fused = fuse(model)

    check(run(model), expected)
    assert fused.counts["linear layers"] == 11
    assert fused.num_left == 3


def test_siblings_that_are_given_other_inputs_are_computed_alone():
    model = with_lora(make_llama(VOCABULARY))
    attention = model.base_model.model.model.layers[0].self_attn
    own = copy.deepcopy(attention)
    fuse(model)
    x = torch.randn(1, 5, 32)

    for _ in range(2):
        q, k, v = attention.q_proj(x), attention.k_proj(x + 1), attention.v_proj(x)
        assert torch.allclose(q, own.q_proj(x), atol=1e-5)
        assert torch.allclose(k, own.k_proj(x + 1), atol=1e-5)
        assert torch.allclose(v, own.v_proj(x), atol=1e-5)
    q = attention.q_proj(x)
    x += 1
    assert torch.allclose(attention.k_proj(x), own.k_proj(x), atol=1e-5)


def test_fusing_leaves_the_random_numbers_alone():
    model = with_lora(make_llama(VOCABULARY))
    state = torch.get_rng_state()

    fuse(model)

    assert torch.equal(torch.get_rng_state(), state)


def test_a_fused_layer_keeps_less_for_the_backward_pass():
    def count_kept(model):
        own = {each.untyped_storage().data_ptr() for each in model.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = (tensor, storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model.model.model(input_ids=IDS, use_cache=False)
        return sum(size for _, size in kept.values())

    model = with_lora(make_llama(VOCABULARY, hidden_size=64, intermediate_size=256))
    before = count_kept(model)

    fuse(model)

    assert count_kept(model) < 0.62 * before


@pytest.mark.parametrize("is_autocast", [False, True])
def test_in_half_precision_it_is_no_further_from_the_exact_gradient(is_autocast):
    model = with_lora(make_llama(VOCABULARY)).bfloat16()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    context = torch.autocast("cpu", torch.bfloat16) if is_autocast else nullcontext()
    exact = run(copy.deepcopy(model).float())[1]

    def error(gradients):
        return sum((gradients[name] - each).norm() / each.norm() for name, each in exact.items())

    with context:
        own = error(run(model)[1])
        fuse(model)
        ours = error(run(model)[1])

    assert ours < 1.5 * own
