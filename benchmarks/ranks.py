"""How evenly ranks are loaded, and how much sooner two of them are done than one.

balance: an epoch of rows is dealt to simulated ranks, and every micro-batch is built. Ranks wait
for each other at the end of a step, so what counts is the tokens that the slowest rank of each step
computes, added up, over the mean of all ranks. The peer is the usual dealing in turns, of whose
ranks the real tokens are counted, without any padding.
wall: two ranks of one thread against one rank of one thread, the same steps, in turns. Beside the
wall time stands the processor time of the busier rank: what two free cores would come to.
The rows end in benchmarks/ranks.csv.

    python benchmarks/ranks.py --parts balance --ranks 2 8 64
    python benchmarks/ranks.py --parts wall --models smollm2 --splits 2x8 --pairs 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

PARTS = ("balance", "wall")

LAYOUTS = ("tree", "padded")

NUM_ROWS = 900


def main(words: list[str] | None = None) -> None:
    """Measures the parts, prints them, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    if "balance" in options.parts:
        measure_balance(options, table)
    if "wall" in options.parts:
        measure_wall(options, table)
    table.draw(
        "computed tokens of the slowest rank over the mean, in percent (beside: dealt in turns)",
        lambda row: (
            f"{row['ranks']} ranks, {row['split']}, {row['layout']} ({row['turns_percent']} %)"
        ),
        "slowest_percent",
        is_shown=lambda row: row["part"] == "balance",
        line=3.0,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 8, 64], help="of the balance")
    parser.add_argument(
        "--per-rank", nargs="+", default=["1x8", "8x1"], help="batch x accumulation of each of them"
    )
    parser.add_argument("--models", nargs="+", default=["smollm2"], help="of the wall time; tiny")
    parser.add_argument("--splits", nargs="+", default=["2x8"], help="batch x accumulation of one")
    parser.add_argument("--pairs", type=int, default=3, help="runs of every side")
    parser.add_argument("--steps", type=int, default=6, help="of a run; the first does not count")
    parser.add_argument("--data", help=f"alpaca rows; without it {NUM_ROWS} random ones")
    figures.add_options(parser, __file__, threads=1)
    options = parser.parse_args(words)
    for split in options.splits:
        if int(split.split("x")[1]) % 2:
            parser.error(f"--splits {split}: two ranks take half of the accumulation each")
    return options


def measure_balance(options: argparse.Namespace, table: figures.Table) -> None:
    """Deals the epochs, prints a line and adds a row for each."""
    with tempfile.TemporaryDirectory() as folder:
        rows = options.data or str(material.write_rows(Path(folder) / "rows.json", NUM_ROWS))
        asked = {"model": "tiny", "dtype": "float32", "folder": folder}
        sides.run("material:make_model", asked, options.threads)
        cases = [
            {"ranks": ranks, "split": split, "layout": layout}
            for ranks in options.ranks
            for split in options.per_rank
            for layout in LAYOUTS
        ]
        asked = {"rows": rows, "folder": folder, "cases": cases}
        found = sides.run("ranks:deal_epochs", asked, options.threads).value["found"]
    for case, figure in zip(cases, found, strict=True):
        print(
            f"{case['ranks']} ranks, {case['split']}, {case['layout']}: the slowest computes "
            f"{figure['slowest_percent']:.2f} % more than the mean (dealt in turns "
            f"{figure['turns_percent']:.1f} %); a plan takes {figure['plan_ms']:.1f} ms"
        )
        table.add({"part": "balance", **case, **figure})


def deal_epochs(rows: str, folder: str, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the same epoch, dealt in several ways."""
    from benchmarks import peers
    from luthier.batching.order import ShuffledOrder
    from luthier.example import read_examples

    config = material.configuration(folder, rows, "qwen", folder, split="1x1", steps=1)
    _, encoded = peers.encode(config)
    order = list(ShuffledOrder(min(len(encoded), NUM_ROWS), seed=42))
    sequences = read_examples(encoded.with_format("arrow")[order])
    return {"found": [_deal_epoch(sequences, **case) for case in cases]}


def _deal_epoch(sequences: list[Any], ranks: int, split: str, layout: str) -> dict[str, Any]:
    from luthier.arguments.data import DataArguments
    from luthier.batching.padded import pad
    from luthier.batching.plan import plan_examples
    from luthier.batching.steps import SATURATING_TOKENS
    from luthier.batching.tree import build_tree

    batch, accumulation = map(int, split.split("x"))
    cutoff_len = DataArguments.model_fields["cutoff_len"].default
    budget = min(batch * cutoff_len, SATURATING_TOKENS["cpu"])
    is_padded = layout == "padded"

    def computed(step: list[Any], micro_batch: list[int]) -> int:
        examples = [step[each] for each in micro_batch]
        built = pad(examples, 0) if is_padded else build_tree(examples, share_prefixes=True)
        return built.num_computed

    slowest = mean = slowest_in_turns = mean_in_turns = 0.0
    seconds: list[float] = []
    size = ranks * batch * accumulation
    for start in range(0, len(sequences), size):
        step = sequences[start : start + size]
        lengths = [len(each.input_ids) for each in step]
        begun = time.process_time()
        plan = plan_examples(step, ranks, budget, is_padded=is_padded, share_prefixes=not is_padded)
        seconds.append(time.process_time() - begun)
        loads = [sum(computed(step, each) for each in micro_batches) for micro_batches in plan]
        slowest, mean = slowest + max(loads), mean + sum(loads) / ranks
        in_turns = [0] * ranks
        for place, length in enumerate(lengths):
            in_turns[place // batch % ranks] += length
        slowest_in_turns += max(in_turns)
        mean_in_turns += sum(in_turns) / ranks
    return {
        "rows": len(sequences),
        "slowest_percent": round(100 * (slowest / mean - 1), 3),
        "turns_percent": round(100 * (slowest_in_turns / mean_in_turns - 1), 1),
        "computed_tokens": round(mean * ranks),
        "plan_ms": round(1000 * statistics.median(seconds), 1),
    }


def measure_wall(options: argparse.Namespace, table: figures.Table) -> None:
    """Trains on one and on two ranks in turns, prints the ratio and adds a row for each split."""
    models = material.each_model(options.models, ["float32"], options.smollm2, options.threads)
    for model, _, folder in models:
        rows = options.data or str(material.write_rows(Path(folder) / "rows.json", NUM_ROWS))
        for split in options.splits:
            outcomes: dict[str, list[dict[str, Any]]] = {"1": [], "2": []}
            for _, side in sides.turns(list(outcomes), options.pairs):
                batch, accumulation = map(int, split.split("x"))
                config = material.configuration(
                    folder,
                    rows,
                    material.TEMPLATES[model],
                    folder,
                    split=f"{batch}x{accumulation // int(side)}",
                    steps=options.steps,
                )
                ran = sides.run(
                    "ranks:train", {"config": config}, options.threads, num_ranks=int(side)
                )
                outcomes[side].append(ran.value)
            report(table, model, split, outcomes)


def train(config: dict[str, Any]) -> dict[str, Any]:
    """A run of this rank; what every rank has measured comes back."""
    import luthier
    from benchmarks import peers
    from luthier.processes.ranks import gather_objects

    class Gathering(peers.Clock):
        """Asks the others before the group is left."""

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ranks = gather_objects((self.seconds(0), self.seconds(1)))

    clock = Gathering()
    result = luthier.train(config, callbacks=[clock])
    losses = [record["loss"] for record in result.log_history if "loss" in record]
    wall, processor = zip(*clock.ranks, strict=True)
    return {"wall": max(wall), "cpu": max(processor), "losses": losses}


def report(
    table: figures.Table, model: str, split: str, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    """Prints a line and adds a row."""
    one, two = outcomes["1"], outcomes["2"]
    wall, processor = (
        figures.ratios([run[clock] for run in one], [run[clock] for run in two])
        for clock in ("wall", "cpu")
    )
    apart = max(
        abs(mine / theirs - 1)
        for mine, theirs in zip(two[0]["losses"], one[0]["losses"], strict=True)
    )
    print(
        f"{model} {split}: two ranks are {wall} times as fast as one; one takes {processor} times "
        f"the processor time of the busier of two; losses differ by {apart:.1e}"
    )
    table.add(
        {
            "part": "wall",
            "model": model,
            "split": split,
            "runs": len(one),
            **wall.columns("wall_ratio"),
            **processor.columns("cpu_ratio"),
            "losses_apart": f"{apart:.1e}",
        }
    )


if __name__ == "__main__":
    main()
