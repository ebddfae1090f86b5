"""Memory of streaming a file, and how soon a stream goes on, against the streams of `datasets`.

memory: luthier streams files of several sizes from end to end; what its process and its workers
take beyond what they took at the start (Linux: proportional set size, every 100 steps).
resume: from the state behind a step to the next step's examples, tokenised. The peer is the usual
way of a trainer over `load_dataset(streaming=True).shuffle(...)`: the rows before are read again
and dropped. Its rows are not even tokenised.
The rows end in benchmarks/streaming.csv.

    python benchmarks/streaming.py --sizes 200 800 --workers 0 2 --steps 100 1000 10000
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

PARTS = ("memory", "resume")

STEP = 64
"""Examples of a step."""

BUFFER_SIZE = 16384


def main(words: list[str] | None = None) -> None:
    """Measures both parts, prints them, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        tokenizer = f"{folder}/tokenizer"
        sides.run("tokenize:make_tokenizer", {"folder": tokenizer}, options.threads)
        for megabytes in options.sizes:
            file = write_lines(Path(folder) / f"{megabytes}.jsonl", megabytes)
            for workers in options.workers if "memory" in options.parts else ():
                asked = {"file": str(file), "tokenizer": tokenizer, "workers": workers}
                found = sides.run("streaming:stream", asked, options.threads).value
                print(
                    f"{megabytes:,} MB, {workers} workers: {found['rows']:,} rows in "
                    f"{found['seconds']:.0f} s; memory grows by {found['growth_mib']:.0f} MiB"
                )
                table.add({"part": "memory", "megabytes": megabytes, "workers": workers, **found})
        for step in options.steps if "resume" in options.parts else ():
            found = {}
            for side in ("luthier", "datasets"):
                asked = {"file": str(file), "tokenizer": tokenizer, "step": step}
                found |= sides.run(f"streaming:go_on_{side}", asked, options.threads).value
            print(
                f"step {step:,}: the next examples after {found['luthier_s']:.2f} s (state of "
                f"{found['state_bytes']:,} bytes); datasets reads for {found['datasets_s']:.1f} s"
            )
            table.add({"part": "resume", "megabytes": megabytes, "step": step, **found})
    table.draw(
        "seconds until a stream goes on",
        lambda row: f"luthier behind step {row['step']} (datasets: {row['datasets_s']} s)",
        "luthier_s",
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[200, 800], help="megabytes")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--folder", help="for the files; by default the system's")
    figures.add_options(parser, __file__, threads=1)
    return parser.parse_args(words)


def write_lines(file: Path, megabytes: int) -> Path:
    """Rows of a made-up language, one a line; the same 20,000 again and again."""
    words, weights = material.make_language()
    lines = [json.dumps(row) + "\n" for row in material.make_rows(20_000, 0, words, weights)]
    block = "".join(lines).encode()
    with file.open("wb") as out:
        for _ in range(max(megabytes * 10**6 // len(block), 1)):
            out.write(block)
    return file


def open_stream(file: str, tokenizer: str, workers: int) -> Any:
    """The stream of a run."""
    from luthier.arguments.parse import parse_dict
    from luthier.data.pipeline import load_datasets
    from luthier.modeling.tokenizer import load_tokenizer
    from luthier.stages.sft import SupervisedFineTuning
    from luthier.templates.fit import choose_template, fit_tokenizer

    arguments = parse_dict(
        {
            "model_name_or_path": tokenizer,
            "dataset": file,
            "template": "chatml",
            "do_train": True,
            "output_dir": tokenizer,
            "streaming": True,
            "buffer_size": BUFFER_SIZE,
            "max_steps": 1,
            "dataloader_num_workers": workers,
        }
    )
    loaded = load_tokenizer(arguments.model, min_length=arguments.data.cutoff_len)
    template = choose_template(arguments.data, loaded)
    fit_tokenizer(loaded, template)
    stage = SupervisedFineTuning(arguments)
    stage.fit(loaded, template)
    import datasets  # noqa: F401  is there before anything is measured

    loaded("so is the tokenizer")
    return lambda: load_datasets(arguments, stage).train


def stream(file: str, tokenizer: str, workers: int) -> dict[str, Any]:
    """One pass over the file."""
    opened = open_stream(file, tokenizer, workers)
    before, most = memory_mib(), 0.0
    begun = time.perf_counter()
    one = opened()
    one.start()
    rows = 0
    while not one.epoch:
        one.next(STEP)
        rows += STEP
        if rows % (100 * STEP) == 0:
            most = max(most, memory_mib())
    seconds = time.perf_counter() - begun
    one.close()
    return {"rows": rows, "seconds": round(seconds, 1), "growth_mib": round(most - before)}


def memory_mib() -> float:
    """What this process and its children take, shared pages by their share."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    total = 0
    for process in (str(own), *children):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def go_on_luthier(file: str, tokenizer: str, step: int) -> dict[str, Any]:
    """From a state to the examples behind it, in a stream that never saw others."""
    opened = open_stream(file, tokenizer, 2)
    one = opened()
    one.start()
    for _ in range(step):
        one.next(STEP)
    state = json.dumps(one.state(step * STEP))
    expected = one.next(STEP)
    one.close()
    other = open_stream(file, tokenizer, 0)
    begun = time.perf_counter()
    again = other()
    again.start(json.loads(state))
    found = again.next(STEP)
    seconds = time.perf_counter() - begun
    assert found.equals(expected), "the next examples are the very next ones"
    return {"luthier_s": round(seconds, 2), "state_bytes": len(state)}


def go_on_datasets(file: str, tokenizer: str, step: int) -> dict[str, Any]:
    """Reads and drops the rows before."""
    import datasets

    datasets.disable_progress_bars()
    begun = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=file, split="train", streaming=True)
    rows = rows.shuffle(seed=42, buffer_size=BUFFER_SIZE).repeat(None)
    next(islice(iter(rows), step * STEP, None))
    return {"datasets_s": round(time.perf_counter() - begun, 2)}


if __name__ == "__main__":
    main()
