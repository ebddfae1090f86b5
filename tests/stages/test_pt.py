"""raw text: the same loss as that of conversations, and the perplexity"""

import math

import pytest

from luthier.records import Text
from luthier.stages.stage import STAGES
from tests import tiny
from tests.rows import pad
from tests.stages.made import make_stage

ROW = {"input_ids": [1, 5, 9, 2], "labels": [1, 5, 9, 2]}


def test_texts_are_learned_with_the_loss_of_conversations():
    model = tiny.make_llama().eval()
    batch = pad([ROW], 0)

    texts = make_stage("pt", compute_accuracy=True).loss(model, batch)

    conversations = make_stage("sft", compute_accuracy=True).loss(model, batch)
    assert STAGES.get("pt").record is Text
    assert texts.total.item() == conversations.total.item()
    assert texts.metrics["accuracy"] == conversations.metrics["accuracy"]


@pytest.mark.parametrize(("loss", "perplexity"), [(0.0, 1.0), (2.0, math.exp(2)), (1e4, math.inf)])
def test_an_evaluation_gives_the_perplexity(loss: float, perplexity: float):
    assert make_stage("pt").derive({"loss": loss}) == {"perplexity": perplexity}
    assert make_stage("sft").derive({"loss": loss}) == {}
