"""Rows a second from a file of conversations to token ids, against the usual `datasets.map`.

luthier reads, checks, encodes and caches the rows by `luthier.data.pipeline.load_datasets`. The
peer reads them by `datasets.load_dataset` and encodes them by `map`, row by row and turn by turn
with `tokenizer.encode`, as the tools that people come from do; checking and the rest of their work
is left out. Both start cold, a process each, in turns, with the same number of workers; the ids
are compared. What luthier needs when it finds the rows in its cache stands beside it. The rows end
in benchmarks/tokenize.csv.

    python benchmarks/tokenize.py --rows 50000 --workers 1 2 --pairs 3
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # this file's folder would hide the standard library's own `tokenize`
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

VOCABULARY = 32_000


def main(words: list[str] | None = None) -> None:
    """Runs both in turns for each number of workers, prints the ratios, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    with tempfile.TemporaryDirectory() as folder:
        rows, tokenizer = prepare(options, Path(folder))
        for workers in options.workers:
            found: dict[str, list[dict[str, Any]]] = {"luthier": [], "map": []}
            for _, side in sides.turns(list(found), options.pairs):
                arguments = {"rows": rows, "tokenizer": tokenizer, "workers": workers}
                function = f"tokenize:{'encode' if side == 'luthier' else 'encode_by_map'}"
                with tempfile.TemporaryDirectory(dir=folder) as cache:
                    outcome = sides.run(function, arguments | {"cache": cache}, options.threads)
                found[side].append(outcome.value)
            report(options, table, workers, found)
    table.draw(
        "rows a second: luthier over datasets.map, cold",
        lambda row: f"{row['rows']} rows, {row['workers']} workers, {row['data']}",
        "ratio",
        line=1.0,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="processes")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each")
    parser.add_argument("--data", help="alpaca rows; without it random ones of 40,000 words")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="with ChatML; without it a made one")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    figures.add_options(parser, __file__, threads=1)
    return parser.parse_args(words)


def prepare(options: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """The file of the rows and the folder of the tokenizer."""
    rows = options.data
    if rows is None:
        rows = str(material.write_rows(folder / "rows.json", options.rows, is_rich=True))
    if options.tokenizer is not None:
        return rows, options.tokenizer
    made = folder / "tokenizer"
    sides.run("tokenize:make_tokenizer", {"folder": str(made)}, options.threads)
    return rows, str(made)


def make_tokenizer(folder: str) -> dict[str, Any]:
    """A tokenizer of the made-up language, in a folder that also holds a model's configuration."""
    from transformers import Qwen2Config

    words, weights = material.make_language()
    texts = (row["output"] for row in material.make_rows(5000, 1, words, weights))
    material.make_tokenizer(texts, VOCABULARY).save_pretrained(folder)
    Qwen2Config(**material.TINY).save_pretrained(folder)
    return {}


def encode(rows: str, tokenizer: str, workers: int, cache: str) -> dict[str, Any]:
    """luthier, cold and then from its cache."""
    from luthier.arguments.parse import parse_dict
    from luthier.data.pipeline import load_datasets
    from luthier.modeling.tokenizer import load_tokenizer
    from luthier.stages.sft import SupervisedFineTuning
    from luthier.templates.fit import choose_template, fit_tokenizer

    arguments = parse_dict(
        {
            "model_name_or_path": tokenizer,
            "dataset": rows,
            "template": "chatml",
            "do_train": True,
            "output_dir": cache,
            "cache_dir": cache,
            "preprocessing_num_workers": workers,
        }
    )
    loaded = load_tokenizer(arguments.model, min_length=arguments.data.cutoff_len)
    template = choose_template(arguments.data, loaded)
    fit_tokenizer(loaded, template)
    stage = SupervisedFineTuning(arguments)
    stage.fit(loaded, template)
    import datasets  # noqa: F401  both sides have it before the clock starts

    clock = Clock()
    found = load_datasets(arguments, stage).train
    value = clock.value()
    clock = Clock()
    load_datasets(arguments, stage)
    warm = clock.value()["wall"]
    assert found is not None
    return value | {"rows": len(found), "warm": warm, "ids": hash_of(found.table["input_ids"])}


def encode_by_map(rows: str, tokenizer: str, workers: int, cache: str) -> dict[str, Any]:
    """The usual way: one call of the tokenizer for each turn of each row."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(tokenizer)

    def encode_batch(examples: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        input_ids, labels = [], []
        columns = (examples["instruction"], examples["input"], examples["output"])
        for instruction, query, answer in zip(*columns, strict=True):
            asked = f"{instruction}\n{query}" if query else instruction
            prompt = loaded.encode(
                f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
                add_special_tokens=False,
            )
            told = loaded.encode(f"{answer}<|im_end|>\n", add_special_tokens=False)
            input_ids.append(prompt + told)
            labels.append([-100] * len(prompt) + told)
        return {"input_ids": input_ids, "labels": labels}

    clock = Clock()
    read = datasets.load_dataset("json", data_files=rows, cache_dir=cache, split="train")
    found = read.map(
        encode_batch,
        batched=True,
        num_proc=workers if workers > 1 else None,
        remove_columns=read.column_names,
        load_from_cache_file=False,
    )
    value = clock.value()
    return value | {"rows": len(found), "ids": hash_of(found["input_ids"])}


class Clock:
    """Wall and processor time from here on, that of ended children with it."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), sum(os.times()[:4])

    def value(self) -> dict[str, float]:
        """Seconds."""
        return {
            "wall": time.perf_counter() - self._wall,
            "cpu": sum(os.times()[:4]) - self._cpu,
        }


def hash_of(ids: Any) -> str:
    """One hash of all rows' ids in their order."""
    digest = hashlib.sha256()
    for row in ids:
        digest.update(repr(list(row)).encode())
    return digest.hexdigest()[:12]


def report(
    options: argparse.Namespace,
    table: figures.Table,
    workers: int,
    found: dict[str, list[dict[str, Any]]],
) -> None:
    """Prints a line and adds a row."""
    clock = "cpu" if options.cpu_time else "wall"
    speeds = {side: [one["rows"] / one[clock] for one in runs] for side, runs in found.items()}
    ours, theirs = (figures.Spread.of(speeds[side]) for side in ("luthier", "map"))
    ratio = figures.ratios(speeds["luthier"], speeds["map"])
    warm = figures.Spread.of([one["warm"] for one in found["luthier"]]).median
    are_equal = len({one["ids"] for runs in found.values() for one in runs}) == 1
    num_rows = found["luthier"][0]["rows"]
    print(
        f"{num_rows:,} rows, {workers} workers: luthier {ours.median:,.0f} rows/s, datasets.map "
        f"{theirs.median:,.0f}: {ratio}x; from the cache in {warm:.2f} s; the ids are "
        f"{'equal' if are_equal else 'NOT equal'}",
        flush=True,
    )
    table.add(
        {
            "data": Path(options.data).name if options.data else "random words",
            "tokenizer": Path(options.tokenizer).name if options.tokenizer else "made",
            "rows": num_rows,
            "workers": workers,
            "clock": clock,
            "pairs": options.pairs,
            "luthier_per_s": round(ours.median),
            "map_per_s": round(theirs.median),
            **ratio.columns("ratio"),
            "warm_s": round(warm, 2),
            "are_ids_equal": are_equal,
        }
    )


if __name__ == "__main__":
    main()
