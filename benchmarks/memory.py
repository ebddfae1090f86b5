"""Peak memory of luthier and of the plain Trainer, of a run and of its head alone (Linux).

sides: the same run by each, a process each. What counts is the most resident memory of the loop,
what the loaded model takes left out; the most of the whole process stands beside it.
growth: the same with larger steps, luthier's micro-batches having the same budget of tokens.
budget: luthier with other budgets, the step staying as it is.
head: only the head and the loss over a vocabulary of 151,936, forward and backward.
The rows end in benchmarks/memory.csv.

    python benchmarks/memory.py --models smollm2 qwen2
    python benchmarks/memory.py --parts head --head-tokens 8192
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

PARTS = ("sides", "growth", "budget", "head")

PEERS = {"trainer-checkpointing": "Trainer with checkpointing", "trainer": "Trainer without"}

NAMES = {"luthier": "luthier", **PEERS}

BUDGET = 2048
"""Tokens of a micro-batch while the step grows."""

COPIES = 4
"""Matrices of logits that the plain way holds at its peak: they, their softmax, two gradients."""


def main(words: list[str] | None = None) -> None:
    """Measures the parts that are asked for, prints them, keeps the rows."""
    options = parse(words)
    if not Path("/proc/self/statm").exists():
        figures.skip("memory", "it is read from /proc, which this system does not have")
        return
    table = figures.Table(__file__, options.results)
    asked = options.models if set(options.parts) - {"head"} else ()
    models = material.each_model(asked, ["float32"], options.smollm2, options.threads)
    for model, _, folder in models:
        rows = options.data or str(material.write_rows(Path(folder) / "rows.json", 1000))
        measure_runs(options, table, model, folder, rows)
    if "head" in options.parts:
        measure_head(options, table)
    table.draw(
        "peak memory in MiB, the loaded model left out",
        lambda row: f"{row['part']}: {row['model']} {row['split']} {row['budget']}, {row['side']}",
        "peak_mib",
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2", "qwen2"], help="also: tiny")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="of the part sides")
    parser.add_argument("--growth", nargs="+", type=int, default=[4, 8, 16, 32], metavar="BATCH")
    parser.add_argument("--peer-growth", nargs="*", type=int, default=[4, 8], metavar="BATCH")
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=[1024, 2048, 4096], metavar="TOKENS"
    )
    parser.add_argument("--head-tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=material.QWEN2["vocab_size"])
    parser.add_argument("--data", help="alpaca rows; without it random ones of usual lengths")
    figures.add_options(parser, __file__)
    return parser.parse_args(words)


def measure_runs(
    options: argparse.Namespace, table: figures.Table, model: str, folder: str, rows: str
) -> None:
    """The parts in which a whole run is watched."""

    def measure(part: str, side: str, batch: int, budget: int | None = None) -> float:
        split, template = f"{batch}x1", material.TEMPLATES[model]
        config = material.configuration(
            folder, rows, template, folder, split=split, steps=options.steps
        )
        if budget is not None:
            config["tokens_per_micro_batch"] = budget
        outcome = sides.run("memory:run", {"side": side, "config": config}, options.threads)
        return keep(table, options, part, model, split, budget, side, outcome.value)

    if "sides" in options.parts:
        ours = measure("sides", "luthier", options.batch)
        for peer, name in PEERS.items():
            print(f"    {ours / measure('sides', peer, options.batch):.2f} of that of {name}")
    if "growth" in options.parts:
        for batch in options.growth:
            measure("growth", "luthier", batch, BUDGET)
        for batch in options.peer_growth:
            measure("growth", "trainer", batch)
    if "budget" in options.parts:
        for budget in options.budgets:
            measure("budget", "luthier", max(options.growth), budget)


def run(side: str, config: dict[str, Any]) -> dict[str, Any]:
    """One watched run of one side, in a process of its own."""
    from benchmarks import peers

    memory: dict[str, Any] = peers.train(side, config, is_watching=True)["memory"]
    return memory


def measure_head(options: argparse.Namespace, table: figures.Table) -> None:
    """The head and the loss of a sequence, the plain way and in chunks."""
    for way in ("luthier", "plain"):
        tokens = options.head_tokens
        needed = COPIES * tokens * options.vocabulary * 4
        while way == "plain" and needed > available():
            figures.skip(
                f"the plain head of {tokens:,} tokens",
                f"it may need {needed / 2**30:.0f} GiB, {available() / 2**30:.0f} are free",
            )
            tokens, needed = tokens // 2, needed // 2
        outcome = sides.run(
            "memory:run_head",
            {"way": way, "tokens": tokens, "vocabulary": options.vocabulary},
            options.threads,
        )
        side = "head in chunks" if way == "luthier" else "plain head"
        keep(
            table,
            options,
            "head",
            f"V {options.vocabulary:,}",
            f"{tokens:,} tokens",
            None,
            side,
            outcome.value,
        )


def run_head(way: str, tokens: int, vocabulary: int) -> dict[str, Any]:
    """Loss and hidden gradient of random hidden states under a frozen head."""
    import torch
    from torch.nn.functional import cross_entropy

    from benchmarks.peers import Memory

    width = material.QWEN2["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    weight_VH = torch.empty(vocabulary, width).normal_(std=0.02, generator=generator)
    targets_N = torch.randint(vocabulary, (tokens,), generator=generator)

    def step(count: int) -> None:
        hidden_NH = torch.randn(count, width, generator=generator, requires_grad=True)
        if way == "luthier":
            from luthier.kernels.linear_logps import linear_nll

            loss = linear_nll(hidden_NH, weight_VH, targets_N[:count]).total
        else:
            logits_NV = torch.nn.functional.linear(hidden_NH, weight_VH)
            loss = cross_entropy(logits_NV.float(), targets_N[:count], reduction="sum")
        loss.backward()

    step(min(8, tokens))  # threads and their buffers are there before memory counts
    memory = Memory()
    memory.start()
    step(tokens)
    memory.stop()
    return memory.value()


def available() -> int:
    """Bytes that are free for a process, by Linux's own estimate."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def keep(
    table: figures.Table,
    options: argparse.Namespace,
    part: str,
    model: str,
    split: str,
    budget: int | None,
    side: str,
    memory: dict[str, int],
) -> float:
    """Prints a line, adds a row; gives the peak above the loaded model in MiB."""
    above = (memory["peak"] - memory["before"]) / 2**20
    whole = memory["whole"] / 2**20
    name = NAMES.get(side, side)
    said = f" in micro-batches of {budget:,} tokens" if budget else ""
    print(
        f"{part}: {model}, {split}{said}, {name}: {above:,.0f} MiB, {whole:,.0f} MiB in all",
        flush=True,
    )
    table.add(
        {
            "part": part,
            "model": model,
            "split": split,
            "budget": budget or "",
            "side": name,
            "steps": options.steps,
            "threads": options.threads,
            "peak_mib": round(above),
            "before_mib": round(memory["before"] / 2**20),
            "whole_mib": round(whole),
        }
    )
    return above


if __name__ == "__main__":
    main()
