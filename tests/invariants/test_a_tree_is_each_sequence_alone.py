"""the whole engine (tree, fused layers, reads) against each sequence alone, in float64"""

from __future__ import annotations

import copy
import random

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.fused.fuse import fuse
from luthier.modeling.attention.interface import install_tree_attention
from luthier.modeling.memory import checkpoint_activations
from luthier.modeling.reads import read_nll
from luthier.records import IGNORE_INDEX
from tests import tiny
from tests.modeling.attention.architectures import EQUAL, make
from tests.rows import build_tree, pad

LOSS = 1e-6
GRADIENT = 1e-5
"""What float32 may differ from float64, relative: the loss, and each gradient by its norm."""

ROUNDING = 1e-6
"""A gradient under this share of the largest one is only what rounding left of zero."""


def examples() -> list[dict[str, list[int]]]:
    """Prompts that share a beginning, each with two answers, and the corner cases."""
    draw = random.Random(3)

    def tokens(number: int) -> list[int]:
        return [draw.randrange(3, 120) for _ in range(number)]

    system = tokens(11)
    found = []
    for _ in range(3):
        prompt = system + tokens(draw.randrange(3, 15))
        for _ in range(2):
            answer = tokens(draw.randrange(2, 14))
            found.append((prompt + answer, [IGNORE_INDEX] * len(prompt) + answer))
    whole = found[0][0]
    found += [(whole, whole), (whole[:14], whole[:14]), (tokens(1), [IGNORE_INDEX])]
    return [dict(input_ids=ids, labels=labels) for ids, labels in found]


EXAMPLES = examples()


def alone(model, rows):
    """Loss and gradients of the model's own forward in float64, a sequence at a time."""
    exact = copy.deepcopy(model).double()
    if isinstance(exact, PreTrainedModel):
        exact.set_experts_implementation("eager")  # torch's grouped product knows no float64
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = exact(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
        wanted = torch.tensor(row["labels"][1:], dtype=torch.int64)
        loss = functional.cross_entropy(
            logits[:-1].double(), wanted, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        total = total + loss
    total.backward()
    return total.item(), gradients(exact)


def gradients(model):
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def check(model, batch, expected):
    loss, wanted = expected
    model.zero_grad()
    found = read_nll(model, batch).total
    found.backward()

    assert found.item() == pytest.approx(loss, rel=LOSS)
    got = gradients(model)
    largest = max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        apart = float((got[name] - gradient).norm())
        assert apart <= GRADIENT * float(gradient.norm()) + ROUNDING * largest, name


@pytest.mark.parametrize("name", EQUAL)
def test_every_architecture_learns_from_a_tree_what_it_learns_from_each_alone(name):
    model = make(name)
    expected = alone(model, EXAMPLES)

    install_tree_attention(model)
    fuse(model)

    tree = build_tree(EXAMPLES, share_prefixes=True)
    assert tree.num_computed < tree.num_tokens
    check(model, tree, expected)
    check(model, build_tree(EXAMPLES, share_prefixes=False), expected)
    check(model, pad(EXAMPLES, 0), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_an_adapter_with_checkpointing_learns_the_same(use_reentrant):
    torch.manual_seed(0)
    model = peft.get_peft_model(
        tiny.make_qwen2(vocab_size=120),
        peft.LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        ),
    )
    expected = alone(model, EXAMPLES)

    install_tree_attention(model)
    fuse(model)
    checkpoint_activations(model.get_base_model(), use_reentrant=use_reentrant)
    model.train()

    check(model, build_tree(EXAMPLES, share_prefixes=True), expected)


def forests():
    """Sequences of few kinds of tokens, so that they share, nest and repeat."""
    token = st.integers(3, 5)
    stem = st.lists(token, min_size=0, max_size=14)
    tail = st.lists(token, min_size=1, max_size=8)
    return st.lists(st.tuples(st.sampled_from(range(3)), tail), min_size=1, max_size=7).flatmap(
        lambda parts: st.tuples(st.just(parts), st.lists(stem, min_size=3, max_size=3))
    )


LLAMA = tiny.make_llama(vocab_size=12, tie_word_embeddings=True)
TREES = copy.deepcopy(LLAMA)
install_tree_attention(TREES)
fuse(TREES)


@settings(max_examples=40, deadline=None)
@given(forests())
def test_any_forest_gives_the_loss_and_gradients_of_its_sequences(forest):
    parts, stems = forest
    rows = [dict(input_ids=(ids := stems[of] + tail), labels=ids) for of, tail in parts]
    if all(len(row["input_ids"]) == 1 for row in rows):
        return

    check(TREES, build_tree(rows, share_prefixes=True), alone(LLAMA, rows))
