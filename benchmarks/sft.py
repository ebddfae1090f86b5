"""Examples a second of luthier and of others that fine-tune the same model on the same rows.

All sides train a LoRA with the same first numbers, seed, dtype and threads, a process each, in
turns: `transformers.Trainer` with peft and a padding collator, with gradient checkpointing (as the
tools that people come from do by default) and without; trl's SFTTrainer with packing and without,
where trl is installed. luthier runs by `luthier.train`, with its defaults. Encoding, loading and
the first step do not count. The rows end in benchmarks/sft.csv.

    python benchmarks/sft.py --pairs 3 --steps 8
    python benchmarks/sft.py --models smollm2 --splits 8x1 --pairs 1 --cpu-time --threads 1
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

PEERS = {
    "trainer-checkpointing": "Trainer with checkpointing",
    "trainer": "Trainer without",
    "trl": "SFTTrainer",
    "trl-packing": "SFTTrainer with packing",
}

SAYS = ("layout", "gradient checkpointing", "real tokens", "fused", "micro-batches")
"""Words of the lines in which luthier says how it computes."""


def main(words: list[str] | None = None) -> None:
    """Runs all sides, prints the ratios, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    peers = find_peers(options.peers)
    models = material.each_model(options.models, options.dtypes, options.smollm2, options.threads)
    for model, dtype, folder in models:
        for split in options.splits:
            outcomes = measure(options, model, dtype, split, folder, peers)
            for line in outcomes["luthier"][-1].lines_with(*SAYS):
                print(f"    {line}")
            for peer in peers:
                report(options, table, model, dtype, split, peer, outcomes)
    table.draw(
        "examples a second: luthier over a peer",
        lambda row: f"{row['model']} {row['dtype']} {row['split']}, {row['peer']}",
        "ratio",
        line=1.0,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2", "qwen2"], help="also: tiny")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--splits", nargs="+", default=["8x1", "1x8"], help="batch x accumulation")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--pairs", type=int, default=3, help="runs of every side")
    parser.add_argument("--steps", type=int, default=6, help="of a run; the first does not count")
    parser.add_argument("--data", help="alpaca rows; without it 1,000 random ones of usual lengths")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    figures.add_options(parser, __file__)
    options = parser.parse_args(words)
    if options.steps < 2:
        parser.error("--steps: at least 2, for the first does not count")
    return options


def find_peers(asked: list[str]) -> list[str]:
    """Those of the peers that are installed."""
    if find_spec("trl") is None and any(peer.startswith("trl") for peer in asked):
        figures.skip("trl", "it is not installed: pip install trl")
        asked = [peer for peer in asked if not peer.startswith("trl")]
    return asked


def measure(
    options: argparse.Namespace,
    model: str,
    dtype: str,
    split: str,
    folder: str,
    peers: list[str],
) -> dict[str, list[sides.Outcome]]:
    """The runs of each side, round by round."""
    rows = options.data or str(material.write_rows(Path(folder) / "rows.json", 1000))
    template = material.TEMPLATES[model]
    config = material.configuration(
        folder, rows, template, folder, split=split, steps=options.steps, dtype=dtype
    )
    outcomes: dict[str, list[sides.Outcome]] = {side: [] for side in ["luthier", *peers]}
    for _, side in sides.turns(list(outcomes), options.pairs):
        outcome = sides.run("sft:run", {"side": side, "config": config}, options.threads)
        outcomes[side].append(outcome)
    return outcomes


def run(side: str, config: dict[str, Any]) -> dict[str, Any]:
    """One run of one side, in a process of its own."""
    from benchmarks import peers

    return peers.train(side, config)


def speeds(options: argparse.Namespace, outcomes: list[sides.Outcome]) -> list[float]:
    """Examples a second of every run, its first step left out."""
    clock = "cpu" if options.cpu_time else "wall"
    return [outcome.value["examples"] / outcome.value[clock] for outcome in outcomes]


def report(
    options: argparse.Namespace,
    table: figures.Table,
    model: str,
    dtype: str,
    split: str,
    peer: str,
    outcomes: dict[str, list[sides.Outcome]],
) -> None:
    """Prints a line and adds a row."""
    ours, theirs = speeds(options, outcomes["luthier"]), speeds(options, outcomes[peer])
    ratio = figures.ratios(ours, theirs)
    apart = loss_difference(outcomes["luthier"], outcomes[peer])
    said = outcomes["luthier"][-1].lines_with(*SAYS)
    table.add(
        {
            "model": model,
            "data": Path(options.data).name if options.data else "random words",
            "dtype": dtype,
            "split": split,
            "peer": PEERS[peer],
            "clock": "cpu" if options.cpu_time else "wall",
            "pairs": options.pairs,
            "steps": options.steps,
            "threads": options.threads,
            "luthier_per_s": round(figures.Spread.of(ours).median, 3),
            "peer_per_s": round(figures.Spread.of(theirs).median, 3),
            **ratio.columns("ratio"),
            "loss_difference": "" if apart is None else f"{apart:.1e}",
            "says": " | ".join(said),
        }
    )
    losses = "" if apart is None else f"; losses differ by {apart:.1e} at most"
    print(
        f"{model}, {dtype}, {split}: luthier {figures.Spread.of(ours)} examples/s, {PEERS[peer]} "
        f"{figures.Spread.of(theirs)}: {ratio}x of {options.pairs} pairs{losses}",
        flush=True,
    )


def loss_difference(ours: list[sides.Outcome], theirs: list[sides.Outcome]) -> float | None:
    """The largest difference of logged losses; None where the steps are other steps."""
    pairs = [
        (mine, other)
        for left, right in zip(ours, theirs, strict=True)
        if left.value["examples"] == right.value["examples"]
        for mine, other in zip(left.value["losses"], right.value["losses"], strict=True)
    ]
    return max(abs(mine - other) for mine, other in pairs) if pairs else None


if __name__ == "__main__":
    main()
