"""raw text: the same loss as that of conversations, and the perplexity"""

import math

import pytest

from luthier.records import Text
from luthier.stages.stage import STAGES
from tests import tiny
from tests.rows import pad

ROW = {"input_ids": [1, 5, 9, 2], "labels": [1, 5, 9, 2]}


def test_texts_are_learned_with_the_loss_of_conversations():
    model = tiny.make_llama().eval()
    batch = pad([ROW], 0)

    texts = STAGES.get("pt")().loss(model, batch, with_accuracy=True)

    conversations = STAGES.get("sft")().loss(model, batch, with_accuracy=True)
    assert STAGES.get("pt").record is Text
    assert texts.total.item() == conversations.total.item()
    assert texts.counts["accuracy"].item() == conversations.counts["accuracy"].item()


@pytest.mark.parametrize(("loss", "perplexity"), [(0.0, 1.0), (2.0, math.exp(2)), (1e4, math.inf)])
def test_an_evaluation_gives_the_perplexity(loss: float, perplexity: float):
    assert STAGES.get("pt")().derive({"loss": loss}) == {"perplexity": perplexity}
    assert STAGES.get("sft")().derive({"loss": loss}) == {}
