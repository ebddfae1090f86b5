"""a tokenizer is padded right, long enough, and knows the user's tokens"""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AddedToken, AutoTokenizer

from luthier.errors import ModelError
from luthier.modeling.tokenizer import load_tokenizer, new_tokens, token_descriptions
from tests import tiny
from tests.modeling.making import make_arguments


def load(folder: Path, *, min_length: int | None = None, **values: object):
    arguments = make_arguments(model_name_or_path=str(folder), **values)
    return load_tokenizer(arguments.model, min_length=min_length)


def test_padding_is_on_the_right(llama_folder: Path):
    assert load(llama_folder).padding_side == "right"


@pytest.mark.parametrize(("asked", "expected"), [(None, 512), (100, 512), (4096, 4096)])
def test_the_length_is_raised_and_never_lowered(llama_folder: Path, asked: int, expected: int):
    assert load(llama_folder, min_length=asked).model_max_length == expected


def test_a_tokenizer_that_is_saved_does_not_split_special_tokens(llama_folder, tmp_path):
    tokenizer = load(llama_folder, split_special_tokens=True)
    tokenizer.split_special_tokens = True  # as other tools leave it in a folder
    tokenizer.save_pretrained(tmp_path / "split")
    (tmp_path / "split" / "config.json").write_text('{"model_type": "llama"}')
    again = load(tmp_path / "split", split_special_tokens=True)
    again.save_pretrained(tmp_path / "saved")

    for folder in (llama_folder, tmp_path / "saved"):
        found = AutoTokenizer.from_pretrained(folder)("<|im_end|>", add_special_tokens=False)
        assert len(found["input_ids"]) == 1


def test_added_tokens_are_one_token_each_and_known_to_be_new(llama_folder: Path):
    tokenizer = load(
        llama_folder, add_tokens="wolfnote, luthier", add_special_tokens=["<|im_end|>", "<tool>"]
    )

    ids = tokenizer("wolfnote<tool>", add_special_tokens=False)["input_ids"]

    assert len(ids) == 2
    assert new_tokens(tokenizer) == ("wolfnote", "luthier", "<tool>")
    assert "<tool>" not in tokenizer.decode(ids, skip_special_tokens=True)
    assert "wolfnote" in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("prepend", ["first", "always", "normal"])
@pytest.mark.parametrize("option", ["add_tokens", "add_special_tokens"])
def test_added_tokens_are_found_inside_texts(tmp_path: Path, prepend: str, option: str):
    tokenizer = tiny.make_sentencepiece(prepend)
    tokenizer.add_tokens(["<old>"])  # with a normaliser found at the beginning of a text only
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    tokenizer = load(tmp_path, **{option: "<think>,</think>,<old>"})

    ids = tokenizer("glue <think>the</think><old>", add_special_tokens=False)["input_ids"]
    added = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<old>"])
    assert [one for one in ids if one in added] == added
    assert new_tokens(tokenizer) == ("<think>", "</think>")


def test_an_added_token_that_is_not_found_in_texts_is_refused(tmp_path: Path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_tokens([AddedToken("a<|", normalized=False)])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(ModelError, match=r"'<\|x\|>' is not found in the text 'a<\|x\|>a'"):
        load(tmp_path, add_tokens="<|x|>")


def test_nothing_added_means_nothing_new(llama_folder: Path):
    assert new_tokens(load(llama_folder)) == ()


def test_described_tokens_win_over_the_list(llama_folder: Path, tmp_path: Path):
    file = tmp_path / "tokens.yaml"
    file.write_text('"<svg>": the start of a drawing\n')

    tokenizer = load(
        llama_folder, new_special_tokens_config=str(file), add_special_tokens="<other>"
    )

    assert new_tokens(tokenizer) == ("<svg>",)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: 1\n", "a: [\n", "!!python/object:x {}\n"])
def test_descriptions_that_are_no_mapping_of_texts_are_refused(tmp_path: Path, text: str):
    file = tmp_path / "tokens.yaml"
    file.write_text(text)

    with pytest.raises(ModelError, match="new_special_tokens_config"):
        token_descriptions(make_arguments(new_special_tokens_config=str(file)).model)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, llama_folder: Path):
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())

    with pytest.raises(ModelError, match=str(tmp_path)):
        load(tmp_path)


def test_an_unknown_hub_name_says_to_download_first():
    with pytest.raises(ModelError, match="hf download owner/no-such-model"):
        load(Path("owner/no-such-model"))
