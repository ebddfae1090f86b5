"""texts: from files of every kind to documents, blocks and examples"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.arguments.parse import parse_dict
from luthier.data.pipeline import EncodedDatasets, load_datasets
from luthier.errors import DataError
from luthier.records import IGNORE_INDEX
from luthier.stages.pt import find_bos
from tests import tiny

TEXTS = ("The luthier carves.", "A string sings:\nspruce.", "Warm the glue.")
EOS = 2


def load(dataset: Path, cache: Path, tokenizer=None, **settings: object) -> EncodedDatasets:
    arguments = parse_dict(
        {
            "model_name_or_path": "unused",
            "stage": "pt",
            "do_train": True,
            "dataset": str(dataset),
            "cutoff_len": 16,
            "output_dir": str(cache / "out"),
            "cache_dir": str(cache),
            **settings,
        }
    )
    return load_datasets(arguments, tiny.make_stage(arguments, tokenizer or tiny.make_tokenizer()))


def write_lines(folder: Path, texts: tuple[str, ...] = TEXTS, column: str = "text") -> Path:
    file = folder / "corpus.jsonl"
    file.write_text("".join(json.dumps({column: text}) + "\n" for text in texts))
    return file


def write_json(folder: Path) -> Path:
    file = folder / "corpus.json"
    file.write_text(json.dumps([{"text": text, "source": "a book"} for text in TEXTS], indent=1))
    return file


def write_csv(folder: Path) -> Path:
    file = folder / "corpus.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["number", "content"], *enumerate(TEXTS)])
    return file


def write_parquet(folder: Path) -> Path:
    file = folder / "corpus.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": list(TEXTS)}), file)
    return file


def new_tokens(dataset) -> list[int]:
    return [token for row in dataset["labels"] for token in row if token != IGNORE_INDEX]


def stream(texts) -> list[int]:
    tokenizer = tiny.make_tokenizer()
    return [token for text in texts for token in [*tokenizer(text)["input_ids"], EOS]]


def with_bos() -> tiny.PreTrainedTokenizerFast:
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("write", [write_lines, write_json, write_csv, write_parquet])
def test_files_of_every_kind_give_the_same_tokens(write, tmp_path: Path):
    train = load(write(tmp_path), tmp_path / "cache").train.table

    assert new_tokens(train) == stream(TEXTS)


@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [
        ("line", ["One", "two", "three", "four"]),
        ("paragraph", ["One\ntwo", "three\nfour"]),
        ("document", ["One\ntwo\n\n \nthree\nfour\n"]),
    ],
)
def test_a_text_file_is_its_lines_or_what_sample_by_says(sample_by, texts, tmp_path: Path):
    file = tmp_path / "corpus.txt"
    file.write_text("One\ntwo\n\n \nthree\nfour\n")

    train = load(file, tmp_path / "cache", sample_by=sample_by).train.table

    assert new_tokens(train) == stream(texts)


def test_special_tokens_in_texts_are_split_where_that_is_asked(tmp_path: Path):
    file = write_lines(tmp_path, ("The <|im_end|> of it",))

    kept, split = (
        load(file, tmp_path, split_special_tokens=is_split).train.table["input_ids"][0]
        for is_split in (False, True)
    )

    assert (kept.count(EOS), split.count(EOS)) == (2, 1)
    assert tiny.make_tokenizer().decode(split) == "The <|im_end|> of it<|im_end|>"


def test_a_mapped_column_holds_the_text(tmp_path: Path):
    write_lines(tmp_path, column="body")
    entry = {"file_name": "corpus.jsonl", "columns": {"prompt": "body"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"books": entry}))

    train = load(Path("books"), tmp_path / "cache", dataset_dir=str(tmp_path)).train.table

    assert new_tokens(train) == stream(TEXTS)


def test_rows_of_conversations_are_no_texts(tmp_path: Path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"instruction": "Who?", "output": "I."}]))

    with pytest.raises(DataError, match=r'none is called text or content.*"prompt": "NAME"'):
        load(file, tmp_path / "cache")


def test_wrong_rows_are_named_and_empty_ones_counted(tmp_path: Path):
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "One."}\n{"text": 3}\n{"text": ""}\n{"text": "Two."}\n')

    found = load(file, tmp_path / "cache", max_bad_rows=1)

    (report,) = found.report.sets
    assert report.skipped == {"text: a number where a text belongs": 1}
    assert report.problems[0].startswith(f"{file}:2")
    assert report.left_out == {"no text in it": 1}
    assert new_tokens(found.train.table) == stream(["One.", "Two."])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(st.text(max_size=40).filter(lambda text: text.strip()), min_size=1, max_size=12),
    cutoff_len=st.integers(3, 40),
    packing=st.booleans(),
    neat_packing=st.booleans(),
    overlap=st.integers(0, 1),
    has_bos=st.booleans(),
)
def test_tokens_out_are_tokens_in(
    texts, cutoff_len, packing, neat_packing, overlap, has_bos, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("corpus")
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    texts = [text for text in texts if text.strip()] or ["a"]
    file = write_lines(folder, tuple(texts))
    tokenizer = with_bos() if has_bos else tiny.make_tokenizer()
    given_packing = {} if neat_packing and not packing else {"neat_packing": neat_packing}

    found = load(
        file,
        folder / "cache",
        tokenizer,
        cutoff_len=cutoff_len,
        packing=packing,
        document_overlap=overlap,
        **given_packing,
    )

    assert new_tokens(found.train.table) == stream(texts)
    assert found.report.sets[0].num_tokens == len(stream(texts))
    assert max(found.train.table["num_tokens"][:]) <= cutoff_len
    known = {*stream(texts), *([tokenizer.bos_token_id] if has_bos else [])}
    assert {token for row in found.train.table["input_ids"] for token in row} <= known


def test_blocks_of_the_stream_are_plain_concatenation_and_cutting(tmp_path: Path):
    train = load(
        write_lines(tmp_path), tmp_path / "cache", neat_packing=False, cutoff_len=7
    ).train.table

    tokens = stream(TEXTS)
    assert list(train["input_ids"]) == [tokens[at : at + 7] for at in range(0, len(tokens), 7)]
    assert list(train["labels"]) == list(train["input_ids"])
    assert train["num_units"][:] == [len(row) - 1 for row in train["input_ids"]]


def test_every_end_of_a_text_is_learned_though_it_also_pads(tmp_path: Path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token

    train = load(write_lines(tmp_path), tmp_path / "cache", tokenizer, cutoff_len=8).train.table

    learned = []
    for row in train:
        starts = np.cumsum(row["packed"]) - row["packed"]
        learned += [label for at, label in enumerate(row["labels"]) if at not in starts.tolist()]
    assert learned.count(EOS) == len(TEXTS)
    assert sum(train["num_units"][:]) == len([one for one in learned if one != IGNORE_INDEX])


def test_bos_stands_where_the_tokenizer_puts_it():
    assert find_bos(with_bos()) == with_bos().bos_token_id
    assert find_bos(tiny.make_tokenizer()) is None
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert find_bos(tokenizer) is None


def test_kept_texts_stay_in_the_order_of_the_data_and_apart(tmp_path: Path):
    texts = tuple(f"Line {number} of the book." for number in range(20))
    found = load(write_lines(tmp_path, texts), tmp_path / "cache", val_size=5, cutoff_len=400)

    tokenizer = tiny.make_tokenizer()
    trained, kept = (
        tokenizer.decode(new_tokens(part)).split("<|im_end|>")[:-1]
        for part in (found.train.table, found.eval[""].table)
    )
    assert len(kept) == 5
    assert sorted([*trained, *kept]) == sorted(texts)
    assert trained == [text for text in texts if text in trained]


def test_blocks_are_found_again(tmp_path: Path):
    file = write_lines(tmp_path)
    first = load(file, tmp_path / "cache")
    again = load(file, tmp_path / "cache")
    shorter = load(file, tmp_path / "cache", cutoff_len=9)

    assert [one.was_cached for one in (*first.report.packed, *again.report.packed)] == [False, True]
    assert again.train.table.to_dict() == first.train.table.to_dict()
    assert shorter.report.sets[0].was_cached
    assert not shorter.report.packed[0].was_cached


def test_encoded_texts_travel_in_a_folder(tmp_path: Path):
    file, kept = write_lines(tmp_path), str(tmp_path / "kept")
    first = load(file, tmp_path / "cache", tokenized_path=kept)

    again = load(file, tmp_path / "other", tokenized_path=kept)

    assert again.train.table.to_dict() == first.train.table.to_dict()
    assert again.report.packed[0].num_blocks == len(first.train)
    with pytest.raises(DataError, match="cutoff_len 16, now 9"):
        load(file, tmp_path / "other", tokenized_path=kept, cutoff_len=9)


def test_two_processes_encode_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("luthier.data.reader.LEAST_BYTES", 64)
    file = write_lines(tmp_path, TEXTS * 10)

    one = load(file, tmp_path / "one")
    two = load(file, tmp_path / "two", preprocessing_num_workers=2)

    assert two.train.table.to_dict() == one.train.table.to_dict()


def test_a_shard_is_full_at_some_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("luthier.data.pack.TOKENS_OF_A_SHARD", 32)
    monkeypatch.setattr("luthier.data.pack.TOKENS_TOGETHER", 16)

    train = load(write_lines(tmp_path, TEXTS * 4), tmp_path / "cache").train.table

    assert new_tokens(train) == stream(TEXTS * 4)
    assert len(list((tmp_path / "cache").glob("**/00002.arrow"))) == 1
