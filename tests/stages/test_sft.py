"""the stage's sums against the model's own loss"""

import pytest
import torch
from torch.nn import functional
from transformers.trainer_pt_utils import LabelSmoother

from luthier.modeling.attention.interface import install_tree_attention
from tests import tiny
from tests.rows import build_tree, pad
from tests.stages.made import make_stage

ROWS = [
    {"input_ids": [1, 5, 9, 2, 7, 8], "labels": [-100, -100, 9, 2, -100, 8]},
    {"input_ids": [4, 4, 6], "labels": [-100, 4, 6]},
]


def test_the_sum_is_the_models_own_loss_times_the_learned_tokens():
    model = tiny.make_llama().eval()
    batch = pad(ROWS, pad_token_id=0)
    labels = torch.full_like(batch.input_ids, -100)
    for row, example in enumerate(ROWS):
        labels[row, : len(example["labels"])] = torch.tensor(example["labels"])

    loss = make_stage("sft").loss(model, batch)

    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    assert batch.targets.numel() == 5
    assert (loss.total / 5).item() == pytest.approx(own.item(), rel=1e-6)
    assert loss.metrics == {}


def test_accuracy_counts_the_learned_tokens_that_were_likeliest():
    model = tiny.make_llama().eval()
    batch = pad(ROWS, pad_token_id=0)
    likeliest = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.argmax(
        -1
    )

    metrics = make_stage("sft", compute_accuracy=True).loss(model, batch).metrics

    expected = sum(
        int(likeliest[row, column - 1] == label)
        for row, example in enumerate(ROWS)
        for column, label in enumerate(example["labels"])
        if label != -100
    )
    correct, count = metrics["accuracy"]
    assert (correct.item(), count) == (expected, 5)


def test_a_step_of_training_counts_no_accuracy():
    model = tiny.make_llama().train()

    loss = make_stage("sft", compute_accuracy=True).loss(model, pad(ROWS, pad_token_id=0))

    assert loss.metrics == {}


def test_padding_changes_no_sum():
    model = tiny.make_llama().eval()
    stage = make_stage("sft")

    together = stage.loss(model, pad(ROWS, pad_token_id=0)).total
    alone = [stage.loss(model, pad([row], 0)).total for row in ROWS]

    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-6)


def test_label_smoothing_is_that_of_transformers():
    model = tiny.make_llama().eval()
    batch = pad([{"input_ids": ROWS[0]["input_ids"], "labels": ROWS[0]["labels"]}], 0)
    logits = model(input_ids=batch.input_ids).logits
    labels = torch.tensor([ROWS[0]["labels"]])
    mean = LabelSmoother(epsilon=0.1)({"logits": logits}, labels, shift_labels=True)

    total = make_stage("sft", label_smoothing_factor=0.1).loss(model, batch).total

    assert (total / 3).item() == pytest.approx(mean.item(), rel=1e-6)


SHARED = [3, 5, 9, 2, 7, 8, 6, 4, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20] * 2
WEIGHTED = [
    {
        "input_ids": [*SHARED, *answer],
        "labels": [-100] * 4 + SHARED[4:] + answer,
        "weights": [weight] * len(SHARED) + [1.0] * (len(answer) - 1) + [weight],
    }
    for answer, weight in (([31, 32, 33], 0.5), ([41, 42], 2.0), ([51, 52, 53, 54], 1.0))
]


def make_model():
    model = tiny.make_llama().eval()
    install_tree_attention(model)
    return model


def batches(rows):
    return {
        "padded": pad(rows, pad_token_id=0),
        "packed": build_tree(rows, share_prefixes=False),
        "tree": build_tree(rows, share_prefixes=True),
    }


def gradients(model, total):
    model.zero_grad()
    total.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
def test_each_token_counts_by_its_weight_in_its_own_sequence(layout, label_smoothing):
    model = make_model()
    by_hand = torch.zeros(())
    for row in WEIGHTED:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        nll = functional.cross_entropy(
            logits,
            torch.tensor(row["labels"][1:]),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        by_hand = by_hand + (nll * torch.tensor(row["weights"][1:])).sum()
    batch = batches(WEIGHTED)[layout]
    if layout == "tree":
        assert batch.num_computed < batch.num_tokens

    loss = make_stage("sft", label_smoothing_factor=label_smoothing, compute_accuracy=True).loss(
        model, batch
    )

    unweighted = [{k: v for k, v in row.items() if k != "weights"} for row in WEIGHTED]
    plain = make_stage("sft", compute_accuracy=True).loss(model, pad(unweighted, 0))
    assert loss.total.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert loss.metrics["accuracy"] == plain.metrics["accuracy"]
    found, expected = gradients(model, loss.total), gradients(model, by_hand)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
def test_half_the_weight_is_half_the_gradient(layout):
    model, stage = make_model(), make_stage("sft")
    halved = [row | {"weights": [0.5] * len(row["input_ids"])} for row in WEIGHTED]
    whole = [row | {"weights": [1.0] * len(row["input_ids"])} for row in WEIGHTED]

    half = stage.loss(model, batches(halved)[layout]).total
    full = stage.loss(model, batches(whole)[layout]).total

    assert half.item() == pytest.approx(full.item() / 2, rel=1e-6)
    found, expected = gradients(model, half), gradients(model, full) / 2
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
def test_weights_of_one_change_no_bit(layout):
    model, stage = make_model(), make_stage("sft")
    ones = [row | {"weights": [1.0] * len(row["input_ids"])} for row in WEIGHTED]
    without = [{k: v for k, v in row.items() if k != "weights"} for row in WEIGHTED]

    totals = [stage.loss(model, batches(rows)[layout]).total for rows in (ones, without)]

    assert totals[0].equal(totals[1])
    assert gradients(model, totals[0]).equal(gradients(model, totals[1]))
