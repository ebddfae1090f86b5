"""models attend by a tree when they get one, and otherwise as they did before"""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from luthier.errors import ModelError
from luthier.modeling.attention.interface import (
    install_tree_attention,
    remove_tree_attention,
    tree_arguments,
)
from luthier.records import Segment
from tests import tiny
from tests.modeling.attention import architectures
from tests.modeling.attention.forest import merge

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 11, 4, 8, 3], [7, 3, 6, 13, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
SEQUENCES = [[5, 6, 7, 8, 9], [5, 6, 7, 10], [11, 12, 13]]
TREE = merge(SEQUENCES)
INPUTS = {
    "input_ids": torch.tensor([TREE.ids]),
    "position_ids": torch.tensor([TREE.depths]),
    "use_cache": False,
}


def tree_logits(model: nn.Module) -> torch.Tensor:
    """Logits of a tree, sequence by sequence."""
    with tree_arguments(TREE.segments, CPU) as arguments:
        logits = model(**INPUTS, **arguments).logits[0]
    return torch.cat([logits[places] for places in TREE.places])


def plain_logits(model: nn.Module) -> torch.Tensor:
    """The same, each sequence alone."""
    alone = [model(input_ids=torch.tensor([each]), use_cache=False) for each in SEQUENCES]
    return torch.cat([each.logits[0] for each in alone])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["qwen2, window", "gemma3", "gpt2"])
def test_without_a_tree_nothing_changes_by_a_bit(name, implementation):
    model = architectures.make(name)
    model.set_attn_implementation(implementation)

    def compute():
        model.zero_grad()
        logits = model(input_ids=IDS, attention_mask=MASK).logits
        logits.square().sum().backward()
        written = model.generate(
            IDS, attention_mask=MASK, max_new_tokens=5, do_sample=False, pad_token_id=0
        )
        return [logits, written, *(each.grad for each in model.parameters())]

    before = compute()
    install_tree_attention(model)
    after = compute()

    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_sampled_window_and_a_full_layer_hand_their_own_masks_on():
    model = architectures.make("gemma3")
    long = torch.randint(3, 100, (2, 30))
    before = model(input_ids=long).logits

    install_tree_attention(model)

    assert torch.equal(model(input_ids=long).logits, before)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_removing_gives_the_old_attention_back(implementation):
    model = tiny.make_qwen2()
    model.set_attn_implementation(implementation)

    install_tree_attention(model)
    install_tree_attention(model)
    assert model.config._attn_implementation != implementation
    remove_tree_attention(model)

    assert model.config._attn_implementation == implementation
    with pytest.raises(ModelError, match="no attention layer of this model used the token tree"):
        tree_logits(model)


def test_saved_configurations_do_not_tell(tmp_path):
    model = architectures.make("gemma2")
    install_tree_attention(model)

    model.save_pretrained(tmp_path)

    assert "luthier" not in (tmp_path / "config.json").read_text()
    assert "luthier" not in json.dumps(model.config.to_dict(), default=str)


def test_a_copy_of_a_model_attends_as_the_first_one():
    model = architectures.make("gpt_oss")
    install_tree_attention(model)

    twin = copy.deepcopy(model)

    assert torch.equal(tree_logits(twin), tree_logits(model))
    assert torch.equal(plain_logits(twin), plain_logits(model))


def test_a_model_with_an_adapter_attends_by_a_tree():
    settings = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny.make_llama(), settings).eval()
    wanted = plain_logits(model)

    install_tree_attention(model)

    torch.testing.assert_close(tree_logits(model), wanted)


@pytest.fixture
def one_process():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_distributed_checkpointed_model_attends_by_a_tree(one_process, use_reentrant):
    model = tiny.make_llama()
    wanted = plain_logits(model)
    wanted.square().sum().backward()
    gradients = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    install_tree_attention(model)
    model.train().gradient_checkpointing_enable({"use_reentrant": use_reentrant})

    got = tree_logits(DistributedDataParallel(model))
    got.square().sum().backward()

    torch.testing.assert_close(got, wanted)
    for each, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(each.grad, gradient, rtol=1e-4, atol=1e-5)


def test_a_compiled_model_attends_by_trees_of_all_kinds():
    model = tiny.make_llama()
    wanted = plain_logits(model)
    padded = model(input_ids=IDS, attention_mask=MASK).logits
    install_tree_attention(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")

    torch.testing.assert_close(tree_logits(compiled), wanted)
    torch.testing.assert_close(compiled(input_ids=IDS, attention_mask=MASK).logits, padded)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(tree_logits(compiled), wanted)


def test_mixed_precision_computes_attention_in_the_lower_one():
    model = tiny.make_llama()
    install_tree_attention(model)
    exact = plain_logits(model)

    with torch.autocast("cpu", torch.bfloat16):
        plain, tree = plain_logits(model), tree_logits(model)

    assert tree.dtype == plain.dtype == torch.bfloat16
    assert (tree - exact).norm() < 1.5 * (plain - exact).norm()


def test_attention_dropout_acts_in_training_only():
    model = tiny.make_llama(attention_dropout=0.5)
    install_tree_attention(model)

    assert torch.equal(tree_logits(model.eval()), tree_logits(model))
    assert not torch.equal(tree_logits(model.train()), tree_logits(model))


def test_layers_that_attended_are_counted():
    model = tiny.make_llama(num_hidden_layers=3)
    install_tree_attention(model)

    with tree_arguments(TREE.segments, CPU) as arguments:
        model(**INPUTS, **arguments)

    assert arguments["tree"].num_calls == 3


def test_windows_are_noted_as_the_masks_want_them_and_the_layers_have_them():
    model = architectures.make("gemma2")
    install_tree_attention(model)

    with tree_arguments(TREE.segments, CPU) as arguments:
        model(**INPUTS, **arguments)

    assert arguments["tree"].windows_asked == arguments["tree"].windows_used == {8}


def test_after_an_error_the_next_forward_is_plain_again():
    model = tiny.make_llama()
    install_tree_attention(model)

    with pytest.raises(RuntimeError, match="stop"), tree_arguments(TREE.segments, CPU):
        raise RuntimeError("stop")

    assert torch.isfinite(plain_logits(model)).all()


def test_a_forward_without_the_tree_is_stopped_while_one_is_open():
    model = tiny.make_llama()
    install_tree_attention(model)

    with (
        pytest.raises(ModelError, match="LlamaAttention was not handed the token tree"),
        tree_arguments(TREE.segments, CPU),
    ):
        model(**INPUTS)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"input_ids": IDS[:1]}, "1 x 6 queries for a tree of 9 tokens"),
        ({"attention_mask": torch.zeros(1, 1, 9, 9)}, "a mask of its own"),
        ({"is_causal": False}, "sight in both directions"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_a_tree_does_not_know_is_told(wrong, found):
    model = tiny.make_llama()
    install_tree_attention(model)
    inputs = {name: value for name, value in INPUTS.items() if name != "position_ids"} | wrong

    with (
        pytest.raises(ModelError, match=f"LlamaAttention attends with {found}"),
        tree_arguments(TREE.segments, CPU) as arguments,
    ):
        model(**inputs, **arguments)


def test_a_forward_that_takes_nothing_else_is_refused():
    class Closed(type(tiny.make_llama())):
        def forward(self, input_ids=None):
            return super().forward(input_ids=input_ids)

    with pytest.raises(ModelError, match="the forward of Closed takes no other arguments"):
        install_tree_attention(Closed(tiny.make_llama().config))


def test_what_is_no_model_of_transformers_is_refused():
    with pytest.raises(ModelError, match="Linear computes its attention itself"):
        install_tree_attention(nn.Linear(2, 2))


def test_flash_attention_finds_its_own_name_when_it_is_handed_over_to(monkeypatch):
    seen = []

    def flash(module, *inputs, **options):
        seen.append(module.config._attn_implementation)
        return sdpa_attention_forward(module, *inputs, **options)

    functions = AttentionInterface._global_mapping | {"my_flash": flash}
    monkeypatch.setattr(AttentionInterface, "_global_mapping", functions)
    masks = AttentionMaskInterface._global_mapping
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", dict(masks))
    AttentionMaskInterface.register("my_flash", masks["sdpa"])
    model = tiny.make_llama()
    wanted = plain_logits(model)
    model.config._attn_implementation = "my_flash"

    install_tree_attention(model)

    assert torch.equal(plain_logits(model), wanted)
    assert set(seen) == {"my_flash"}
    torch.testing.assert_close(tree_logits(model), wanted)
    remove_tree_attention(model)
    assert model.config._attn_implementation == "my_flash"


def test_segments_of_one_token_are_a_tree():
    model = tiny.make_llama()
    install_tree_attention(model)

    with tree_arguments([Segment(0, 1, -1)], CPU) as arguments:
        got = model(input_ids=torch.tensor([[7]]), use_cache=False, **arguments).logits

    torch.testing.assert_close(got, model(input_ids=torch.tensor([[7]])).logits)
