"""what is counted, and how it is said"""

from __future__ import annotations

import pytest

from luthier.modeling.counts import count_layers, count_parameters, say_counts
from tests import tiny


def test_layers_are_counted_by_either_name():
    assert count_layers(tiny.make_llama().config) == 2
    assert count_layers(tiny.make_gpt2(n_layer=3).config) == 3


def test_tied_weights_count_once():
    tied = count_parameters(tiny.make_llama(tie_word_embeddings=True))
    own = count_parameters(tiny.make_llama(tie_word_embeddings=False))

    assert own[1] - tied[1] == 400 * 32


def test_the_share_is_said(capsys: pytest.CaptureFixture[str]):
    model = tiny.make_llama().requires_grad_(False)
    model.lm_head.requires_grad_(True)

    say_counts(model, is_trainable=True, with_each=True)

    said = capsys.readouterr().err
    trained, total = count_parameters(model)
    assert f"trainable params: {trained:,} of {total:,} ({100 * trained / total:.2f} %)" in said
    assert "lm_head.weight: (400, 32), float32, cpu, trained" in said
    assert "model.norm.weight: (32,), float32, cpu, frozen" in said
