"""The time of a checkpoint, against transformers' own save of the same LoRA run at the same moment.

At each save of a run both write: luthier stages, hashes, syncs and publishes; transformers writes
its files and its pickled arguments, unsynced and without a hash. They take turns in going first,
and both delete their checkpoint before the last. The figure is the time that training waits, ours
over theirs, save by save; beside it what it adds to a step where each `--every`th step saves. Rows
end in benchmarks/checkpoints.csv.

    python benchmarks/checkpoints.py --saves 30
    python benchmarks/checkpoints.py --models tiny --saves 10
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

WARM_SAVES = 2
"""Saves that do not count: libraries are imported, memory is taken for the first time."""


def main(words: list[str] | None = None) -> None:
    """Measures each model, prints the ratios, keeps a row for each."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    models = material.each_model(options.models, ["float32"], options.smollm2, options.threads)
    for model, _, path in models:
        found = sides.run(
            "checkpoints:measure",
            {
                "model": path,
                "template": material.TEMPLATES[model],
                "saves": options.saves + WARM_SAVES,
                "folder": options.folder,
            },
            options.threads,
        ).value
        ours, plain, step = (found[name][WARM_SAVES:] for name in ("ours", "plain", "step"))
        ratio = figures.ratios(ours, plain)
        added = [mine - other for mine, other in zip(ours, plain, strict=True)]
        step_s = statistics.median(step)
        share = 100 * statistics.median(added) / (options.every * step_s + statistics.median(plain))
        print(
            f"{model}, {found['bytes'] / 2**20:.1f} MiB: a save takes {ratio}x the time of a plain "
            f"one ({1000 * statistics.median(ours):.0f} and {1000 * statistics.median(plain):.0f} "
            f"ms); a run that saves each {options.every} steps of {step_s:.2f} s {share:+.2f} %"
        )
        table.add(
            {
                "model": model,
                "saves": options.saves,
                "threads": options.threads,
                "mib": round(found["bytes"] / 2**20, 1),
                "disk": found["disk"],
                "ours_ms": round(1000 * statistics.median(ours), 1),
                "plain_ms": round(1000 * statistics.median(plain), 1),
                **ratio.columns("ratio"),
                "step_s": round(step_s, 3),
                "every": options.every,
                "added_percent": round(share, 3),
            }
        )
    table.draw(
        "time of a checkpoint over that of transformers' own save",
        lambda row: f"{row['model']}, {row['mib']} MiB, {row['disk']}, {row['when'][:16]}",
        "ratio",
        line=1.0,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2"], help="also: qwen2, tiny")
    parser.add_argument("--saves", type=int, default=30, help="of both, for each model")
    parser.add_argument("--every", type=int, default=50, help="steps between saves of a run")
    parser.add_argument("--folder", help="where checkpoints are written; by default a new one")
    figures.add_options(parser, __file__, threads=1)
    return parser.parse_args(words)


def measure(model: str, template: str, saves: int, folder: str | None) -> dict[str, Any]:
    """One run that saves at every step, in both ways.

    Returns:
        Seconds of each save, `ours` and `plain`, and of each `step`; `bytes` of a checkpoint and
        the kind of file system, `disk`.
    """
    import luthier
    from luthier.checkpoints.files import list_checkpoints, size_of
    from luthier.checkpoints.saver import CheckpointSaver

    found: dict[str, list[float]] = {"ours": [], "plain": [], "step": []}
    save, since = CheckpointSaver.save, [time.perf_counter()]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        plain_place = place / "plain"

        def both(saver: CheckpointSaver, progress: dict[str, Any]) -> Any:
            found["step"].append(time.perf_counter() - since[0])
            for side in ("ours", "plain") if len(found["ours"]) % 2 else ("plain", "ours"):
                begun = time.perf_counter()
                if side == "ours":
                    published = save(saver, progress)
                else:
                    save_plainly(saver._trainer, plain_place)
                found[side].append(time.perf_counter() - begun)
            since[0] = time.perf_counter()
            return published

        rows = material.write_rows(place / "rows.json", 200)
        config = material.configuration(model, str(rows), template, name, split="1x1", steps=saves)
        CheckpointSaver.save = both  # type: ignore[method-assign]
        try:
            result = luthier.train(
                config | {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
            )
        finally:
            CheckpointSaver.save = save  # type: ignore[method-assign]
        size = size_of(list_checkpoints(result.output_dir)[-1])
        return {**found, "bytes": size, "disk": kind_of_disk(place)}


def save_plainly(trainer: Any, folder: Path) -> None:
    """Transformers' save with its rotation, to another folder, as its own trainer would do it."""
    from copy import copy

    from transformers import Trainer

    args = copy(trainer.args)
    args.output_dir, args.save_total_limit = str(folder), 1
    plain = Trainer(trainer.model, args, processing_class=trainer.processing_class)
    plain.optimizer, plain.lr_scheduler = trainer.optimizer, trainer.lr_scheduler
    plain.state = copy(trainer.state)
    plain._save_checkpoint(trainer.model, None)


def kind_of_disk(folder: Path) -> str:
    """The file system that holds a folder, from Linux's /proc; empty where that is not there."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return ""
    kinds = {line.split()[1]: line.split()[2] for line in mounts.read_text().splitlines()}
    return next((kinds[str(p)] for p in [folder, *folder.parents] if str(p) in kinds), "")


if __name__ == "__main__":
    main()
