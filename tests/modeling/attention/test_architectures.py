"""a tree gives whole models the losses and gradients of each sequence alone"""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.errors import ModelError
from luthier.modeling.attention.interface import install_tree_attention, tree_arguments
from luthier.modeling.memory import checkpoint_activations
from tests.modeling.attention.architectures import CARRYING, EQUAL, make
from tests.modeling.attention.forest import merge

CPU = torch.device("cpu")


def sequences() -> list[list[int]]:
    """A prefix that all share, questions with two answers each, and the corner cases."""
    draw = random.Random(5)

    def tokens(number: int) -> list[int]:
        return [draw.randrange(3, 120) for _ in range(number)]

    shared = tokens(11)
    found = []
    for _ in range(3):
        asked = shared + tokens(draw.randrange(3, 15))
        found += [asked + tokens(draw.randrange(2, 14)) for _ in range(2)]
    whole = found[0]
    return [*found, whole, whole[:14], tokens(1), tokens(2), tokens(23)]


SEQUENCES = sequences()
TREE = merge(SEQUENCES)


def losses_alone(model: PreTrainedModel) -> Tensor:
    """The summed loss of each sequence in a forward of its own."""
    losses = []
    for tokens in SEQUENCES:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1]
        wanted = torch.tensor(tokens[1:], dtype=torch.int64)
        losses.append(functional.cross_entropy(logits.float(), wanted, reduction="sum"))
    return torch.stack(losses)


def losses_together(model: PreTrainedModel) -> Tensor:
    """The same losses out of one forward of the tree."""
    with tree_arguments(TREE.segments, CPU) as arguments:
        logits = model(
            input_ids=torch.tensor([TREE.ids]),
            position_ids=torch.tensor([TREE.depths]),
            use_cache=False,
            **arguments,
        ).logits[0]
    losses = []
    for tokens, places in zip(SEQUENCES, TREE.places, strict=True):
        wanted = torch.tensor(tokens[1:], dtype=torch.int64)
        losses.append(
            functional.cross_entropy(logits[places[:-1]].float(), wanted, reduction="sum")
        )
    return torch.stack(losses)


def gradients(model: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    losses.sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@cache
def alone(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    model = make(name)
    losses = losses_alone(model)
    return losses.detach(), gradients(model, losses)


def worst(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    assert got.keys() == wanted.keys()
    return max(
        (float((got[name] - each).norm() / each.norm()), name) for name, each in wanted.items()
    )


def whole_error(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    apart = sum(float((got[name].float() - each).norm()) ** 2 for name, each in wanted.items())
    return float((apart / sum(float(each.norm()) ** 2 for each in wanted.values())) ** 0.5)


def test_the_tree_shares_what_can_be_shared():
    assert len(TREE.ids) < 0.6 * sum(map(len, SEQUENCES))
    assert len(TREE.segments) > 10


@pytest.mark.parametrize("checkpointing", ["", "reentrant", "not reentrant"])
@pytest.mark.parametrize("name", EQUAL)
def test_losses_and_gradients_are_those_of_each_sequence_alone(name, checkpointing):
    wanted, wanted_gradients = alone(name)
    model = make(name)
    install_tree_attention(model)
    if checkpointing:
        model.train()
        checkpoint_activations(model, use_reentrant=checkpointing == "reentrant")

    losses = losses_together(model)
    got = gradients(model, losses)

    total = float(wanted.sum())
    assert abs(float(losses.detach().sum()) - total) <= 1e-6 * total
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    error, where = worst(got, wanted_gradients)
    assert error < 1e-5, where


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_in_half_precision_a_tree_is_no_further_from_the_truth_than_a_sequence(name):
    wanted, wanted_gradients = alone(name)

    def errors(losses_of, prepare=lambda model: None) -> tuple[float, float]:
        model = make(name).to(torch.bfloat16)
        prepare(model)
        losses = losses_of(model)
        loss_error = float((losses.detach() - wanted).norm() / wanted.norm())
        return loss_error, whole_error(gradients(model, losses), wanted_gradients)

    plain = errors(losses_alone)
    tree = errors(losses_together, install_tree_attention)

    # both are rounding by 2^-9 at every layer, in another order
    assert tree[0] < 1.5 * plain[0]
    assert tree[1] < 1.5 * plain[1]


@pytest.mark.parametrize("name", CARRYING)
def test_a_state_along_the_tokens_is_seen_in_the_gradients(name):
    _, wanted_gradients = alone(name)
    model = make(name)
    install_tree_attention(model)

    got = gradients(model, losses_together(model))

    assert worst(got, wanted_gradients)[0] > 1e-2


def test_a_layer_that_is_not_handed_the_tree_says_so():
    model = make("stablelm")
    install_tree_attention(model)

    with pytest.raises(ModelError, match="StableLmAttention was not handed the token tree"):
        losses_together(model)
    assert torch.isfinite(losses_alone(model)).all()


def test_a_window_that_only_the_mask_knows_is_told():
    model = make("qwen2_moe, window")
    install_tree_attention(model)

    with pytest.raises(ModelError, match="masks what is 8 tokens away"):
        losses_together(model)


def test_attention_outside_the_interface_is_refused():
    with pytest.raises(ModelError, match="FalconForCausalLM computes its attention itself"):
        install_tree_attention(make("falcon"))
