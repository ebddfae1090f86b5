"""whole conversations side by side in blocks"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.arguments.parse import parse_dict
from luthier.data.pack import MOST_NAMED, best_fit, join_origins
from luthier.data.pipeline import EncodedDatasets, load_datasets
from luthier.templates.template import TEMPLATES
from tests import tiny


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.json"
    rows = [
        {"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n % 7 + 1)))}
        for n in range(30)
    ]
    file.write_text(json.dumps(rows))
    return file


def load(rows: Path, **settings: object) -> EncodedDatasets:
    arguments = parse_dict(
        {
            "model_name_or_path": "unused",
            "do_train": True,
            "dataset": str(rows),
            "template": "chatml",
            "cutoff_len": 128,
            "output_dir": str(rows.parent / "out"),
            "cache_dir": str(rows.parent / "cache"),
            **settings,
        }
    )
    return load_datasets(
        arguments, tiny.make_stage(arguments, tiny.make_tokenizer(), TEMPLATES.get("chatml"))
    )


def sequences(dataset, column: str) -> list[list[int]]:
    parts = []
    for row in dataset:
        at = 0
        for length in row["packed"]:
            parts.append(row[column][at : at + length])
            at += length
    return parts


@pytest.mark.parametrize("column", ["input_ids", "labels"])
def test_packed_rows_are_the_rows(column, rows: Path):
    plain, packed = load(rows).train.table, load(rows, packing=True).train.table

    assert sorted(sequences(packed, column)) == sorted(plain[column])


def test_blocks_are_full_and_never_longer_than_cutoff_len(rows: Path):
    plain, packed = load(rows).train.table, load(rows, packing=True).train.table

    lengths = packed["num_tokens"][:]
    assert max(lengths) <= 128
    assert len(packed) < len(plain) / 2
    assert sum(lengths) == sum(plain["num_tokens"][:]) > 0.8 * 128 * len(packed)


def test_counts_and_origins_are_those_of_the_rows(rows: Path):
    plain, packed = load(rows).train.table, load(rows, packing=True).train.table

    learned = [sum(label != -100 for label in part[1:]) for part in sequences(packed, "labels")]
    assert sum(packed["num_units"][:]) == sum(plain["num_units"][:]) == sum(learned)
    named = [int(row) for text in packed["origin"] for row in re.findall(r"1 \(row (\d+)\)", text)]
    assert sorted(named) == [row + 1 for row in plain["row"]]


def test_neat_packing_is_packing(rows: Path):
    neat, packed = load(rows, neat_packing=True).train.table, load(rows, packing=True).train.table

    assert neat.to_dict() == packed.to_dict()


def test_only_what_is_trained_on_is_packed(rows: Path):
    found = load(rows, packing=True, val_size=6)

    assert len(found.eval[""]) == 6
    assert found.eval[""].table["packed"][:] == [None] * len(found.eval[""])


def test_a_line_says_what_packing_changes(rows: Path, capsys: pytest.CaptureFixture[str]):
    blocks = len(load(rows, packing=True).train)

    said = " ".join(capsys.readouterr().err.split())
    assert f"packing: 30 conversations -> {blocks} blocks of up to 128 tokens" in said
    assert "a step counts blocks" in said


lengths_lists = st.lists(st.integers(1, 50), max_size=60)


@given(lengths_lists)
def test_every_number_is_in_one_group_that_fits(lengths: list[int]):
    groups = best_fit(lengths, 50)

    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in group) <= 50 for group in groups)


@given(lengths_lists)
def test_no_two_groups_would_fit_into_one(lengths: list[int]):
    totals = sorted(sum(lengths[number] for number in group) for group in best_fit(lengths, 50))

    assert len(totals) < 2 or totals[0] + totals[1] > 50


@given(lengths_lists)
def test_groups_keep_the_order_of_the_rows(lengths: list[int]):
    groups = best_fit(lengths, 50)

    assert groups == sorted(groups)
    assert all(group == sorted(group) for group in groups)


def test_a_row_goes_where_it_leaves_the_least_room():
    assert best_fit([6, 7, 3, 4], 10) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    ("origins", "joined"),
    [
        ([], ""),
        (["rows.jsonl:3"], "rows.jsonl:3"),
        (["a.jsonl:3", "b.jsonl:9", "a.jsonl:1", "a.jsonl:3"], "a.jsonl:3, 1; b.jsonl:9"),
        (["", "a:b/c.txt:7"], "; a:b/c.txt:7"),
        (
            [f"a.txt:{n}" for n in range(MOST_NAMED + 5)],
            f"a.txt:{', '.join(map(str, range(MOST_NAMED)))} and 5 more",
        ),
    ],
)
def test_places_are_told_in_few_words(origins, joined):
    assert join_origins(origins) == joined
