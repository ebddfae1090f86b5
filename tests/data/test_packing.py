"""whole conversations side by side in blocks"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from luthier.arguments.parse import parse_dict
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
    plain, packed = load(rows).train, load(rows, packing=True).train

    assert sorted(sequences(packed, column)) == sorted(plain[column])


def test_blocks_are_full_and_never_longer_than_cutoff_len(rows: Path):
    plain, packed = load(rows).train, load(rows, packing=True).train

    lengths = packed["num_tokens"][:]
    assert max(lengths) <= 128
    assert len(packed) < len(plain) / 2
    assert sum(lengths) == sum(plain["num_tokens"][:]) > 0.8 * 128 * len(packed)


def test_counts_and_origins_are_those_of_the_rows(rows: Path):
    plain, packed = load(rows).train, load(rows, packing=True).train

    learned = [sum(label != -100 for label in part[1:]) for part in sequences(packed, "labels")]
    assert sum(packed["num_units"][:]) == sum(plain["num_units"][:]) == sum(learned)
    named = [int(row) for text in packed["origin"] for row in re.findall(r"1 \(row (\d+)\)", text)]
    assert sorted(named) == [row + 1 for row in plain["row"]]


def test_neat_packing_is_packing(rows: Path):
    neat, packed = load(rows, neat_packing=True).train, load(rows, packing=True).train

    assert neat.to_dict() == packed.to_dict()


def test_only_what_is_trained_on_is_packed(rows: Path):
    found = load(rows, packing=True, val_size=6)

    assert len(found.eval[""]) == 6
    assert found.eval[""]["packed"][:] == [None] * len(found.eval[""])


def test_a_line_says_what_packing_changes(rows: Path, capsys: pytest.CaptureFixture[str]):
    blocks = len(load(rows, packing=True).train)

    said = " ".join(capsys.readouterr().err.split())
    assert f"packing: 30 conversations -> {blocks} blocks of up to 128 tokens" in said
    assert "a step counts blocks" in said
