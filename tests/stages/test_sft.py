"""the stage's sums against the model's own loss"""

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from luthier.batching.padded import pad
from luthier.stages.stage import STAGES
from tests import tiny

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

    loss = STAGES.get("sft")().loss(model, batch, with_accuracy=False)

    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    assert batch.targets.numel() == 5
    assert (loss.total / 5).item() == pytest.approx(own.item(), rel=1e-6)
    assert loss.counts == {}


def test_accuracy_counts_the_learned_tokens_that_were_likeliest():
    model = tiny.make_llama().eval()
    batch = pad(ROWS, pad_token_id=0)
    likeliest = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.argmax(
        -1
    )

    counts = STAGES.get("sft")().loss(model, batch, with_accuracy=True).counts

    expected = sum(
        int(likeliest[row, column - 1] == label)
        for row, example in enumerate(ROWS)
        for column, label in enumerate(example["labels"])
        if label != -100
    )
    assert counts["accuracy"].item() == expected


def test_padding_changes_no_sum():
    model = tiny.make_llama().eval()
    stage = STAGES.get("sft")()

    together = stage.loss(model, pad(ROWS, pad_token_id=0), with_accuracy=False).total
    alone = [stage.loss(model, pad([row], 0), with_accuracy=False).total for row in ROWS]

    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-6)


def test_label_smoothing_is_that_of_transformers():
    model = tiny.make_llama().eval()
    batch = pad([{"input_ids": ROWS[0]["input_ids"], "labels": ROWS[0]["labels"]}], 0)
    logits = model(input_ids=batch.input_ids).logits
    labels = torch.tensor([ROWS[0]["labels"]])
    mean = LabelSmoother(epsilon=0.1)({"logits": logits}, labels, shift_labels=True)

    total = STAGES.get("sft")(label_smoothing=0.1).loss(model, batch, with_accuracy=False).total

    assert (total / 3).item() == pytest.approx(mean.item(), rel=1e-6)
