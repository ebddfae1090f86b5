"""small files and streams of them for the tests beside"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.arguments.parse import parse_dict
from luthier.data.pipeline import EncodedDatasets, load_datasets
from luthier.data.stream import Stream
from luthier.templates.template import TEMPLATES
from tests import tiny

TOKENIZER = tiny.make_tokenizer()


def write_rows(folder: Path, name: str, count: int, *bad: str) -> str:
    """A file of rows that tell their name and number, the bad lines first."""
    rows = [
        json.dumps({"instruction": f"{name} {n}", "output": f"{name} answers {n}", "id": n})
        for n in range(count)
    ]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(f"{line}\n" for line in [*bad, *rows]))
    return str(file)


def load(folder: Path, dataset: Any, **given: Any) -> EncodedDatasets:
    config = {
        "model_name_or_path": "tiny",
        "template": "chatml",
        "dataset": dataset,
        "dataset_dir": str(folder),
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        "do_train": True,
        "streaming": True,
        "max_steps": 5,
        "buffer_size": 8,
        "cutoff_len": 64,
    }
    arguments = parse_dict(config | given)
    return load_datasets(arguments, tiny.make_stage(arguments, TOKENIZER, TEMPLATES.get("chatml")))


def open_stream(folder: Path, dataset: Any, **given: Any) -> Stream:
    stream = load(folder, dataset, **given).train
    assert isinstance(stream, Stream)
    return stream


def take(stream: Stream, count: int) -> list[str]:
    """The answers of the next examples, `name number` of each."""
    ids = stream.next(count)["labels"].to_pylist()
    texts = [TOKENIZER.decode([one for one in row if one >= 0]) for row in ids]
    return [text.partition("<")[0].strip().replace(" answers", "") for text in texts]
