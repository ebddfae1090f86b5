"""rows are added, old rows and their logits stay"""

from __future__ import annotations

import pytest
import torch

from luthier.modeling.vocabulary import embedding_names, fit_config, grow_vocabulary, is_tied
from tests import tiny

IDS = torch.tensor([[5, 17, 300, 9]])


def grown_tokenizer(*tokens: str):
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def size_of(tokenizer) -> int:
    return len(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["noise_init", "desc_init", "desc_init_w_noise"])
def test_old_tokens_keep_their_logits(tied: bool, init: str):
    tokenizer = grown_tokenizer("<a>", "<b>")
    before = size_of(tokenizer) - 2
    model = tiny.make_llama(vocab_size=before, tie_word_embeddings=tied).eval()
    ids = IDS % before
    old = model(ids).logits

    assert grow_vocabulary(
        model,
        tokenizer,
        new_tokens=("<a>", "<b>"),
        init=init,
        descriptions={"<a>": "a string sings", "<b>": "glue"},
    )

    new = model(ids).logits
    assert new.shape[-1] % 64 == 0
    assert new.shape[-1] >= len(tokenizer) == before + 2
    assert model.config.vocab_size == new.shape[-1]
    torch.testing.assert_close(new[..., :before], old)
    assert is_tied(model) == tied


def test_described_tokens_start_from_the_mean_of_their_description():
    tokenizer = grown_tokenizer("<a>")
    before = len(tokenizer) - 1
    model = tiny.make_llama(vocab_size=before, tie_word_embeddings=False)
    words = tokenizer("a string sings", add_special_tokens=False)["input_ids"]
    expected = [m.weight[words].mean(0) for m in (model.get_input_embeddings(), model.lm_head)]

    grow_vocabulary(
        model,
        tokenizer,
        new_tokens=("<a>",),
        init="desc_init",
        descriptions={"<a>": "a string sings"},
    )

    torch.testing.assert_close(model.get_input_embeddings().weight[before], expected[0])
    torch.testing.assert_close(model.lm_head.weight[before], expected[1])


def test_a_new_token_in_the_padding_is_started_without_growth(capsys):
    tokenizer = grown_tokenizer("<a>")
    model = tiny.make_llama(vocab_size=512)
    before = model.get_input_embeddings().weight.detach().clone()

    assert grow_vocabulary(model, tokenizer, new_tokens=("<a>",))

    after = model.get_input_embeddings().weight
    number = tokenizer.convert_tokens_to_ids("<a>")
    same = (after == before).all(dim=1)
    assert after.shape == before.shape
    assert (~same).nonzero().flatten().tolist() == [number]
    said = " ".join(capsys.readouterr().err.split())
    assert "vocabulary: 1 new token in rows of the 512 that stood for none" in said


def test_a_vocabulary_that_is_large_enough_stays():
    model = tiny.make_llama(vocab_size=512)

    assert not grow_vocabulary(model, tiny.make_tokenizer())
    assert model.config.vocab_size == 512


def test_half_precision_stays_half():
    tokenizer = grown_tokenizer("<a>")
    model = tiny.make_llama(vocab_size=len(tokenizer) - 1).to(torch.bfloat16)

    grow_vocabulary(model, tokenizer, new_tokens=("<a>",))

    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_embeddings_have_the_names_of_their_kind():
    assert embedding_names(tiny.make_llama(tie_word_embeddings=False)) == (
        "embed_tokens",
        "lm_head",
    )
    assert embedding_names(tiny.make_llama(tie_word_embeddings=True)) == ("embed_tokens",)
    assert embedding_names(tiny.make_gpt2()) == ("wte",)


def test_a_configuration_without_weights_is_made_to_fit(capsys):
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    config = tiny.make_llama(vocab_size=100).config

    fit_config(config, tokenizer)

    assert config.vocab_size == -(-len(tokenizer) // 64) * 64
    assert config.eos_token_id == tokenizer.eos_token_id
    assert config.pad_token_id is None  # a row of the embeddings that is PAD never learns
    assert f"the tokenizer has {len(tokenizer)} tokens" in " ".join(capsys.readouterr().err.split())


def test_rows_for_no_token_stay_and_are_said(capsys):
    tokenizer = tiny.make_tokenizer()
    config = tiny.make_llama(vocab_size=5000).config

    fit_config(config, tokenizer)

    assert config.vocab_size == 5000
    assert config.pad_token_id == tokenizer.pad_token_id
    said = " ".join(capsys.readouterr().err.split())
    assert f"{5000 - len(tokenizer):,} rows of the embeddings are never used" in said
