"""Rows a second and memory of luthier's preference stages, and of trl's trainers.

Both sides train a LoRA on the same encoded rows with the same first numbers, dtype and threads, a
process each, in turns: trl as it comes, which is with gradient checkpointing, and without. The
reference of dpo is read in every step by both (live) or before training by both (precomputed); that
is not timed. Losses of both are printed side by side. The rows end in benchmarks/preference.csv.

    python benchmarks/preference.py --data pairs.json --splits 4x1 8x1 1x8 --pairs 3
    python benchmarks/preference.py --stages rm --models smollm2 --dtypes float32 --splits 4x1
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

STAGES = {"dpo": ("live", "precomputed"), "kto": ("live",), "rm": ("",)}
"""Stages -> how their reference is read."""

PEERS = {"trl-checkpointing": "trl as it comes", "trl": "trl without checkpointing"}


def main(words: list[str] | None = None) -> None:
    """Runs all sides, prints the ratios, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    peers = options.peers
    if find_spec("trl") is None:
        figures.skip("trl", "it is not installed: pip install trl")
        peers = []
    models = material.each_model(options.models, options.dtypes, options.smollm2, options.threads)
    for model, dtype, folder in models:
        rows = options.data or str(material.write_pairs(Path(folder) / "pairs.json", 400))
        for stage in options.stages:
            for reference in options.reference if stage == "dpo" else STAGES[stage]:
                for split in options.splits:
                    measure(
                        options, table, peers, model, dtype, folder, rows, stage, reference, split
                    )
    table.draw(
        "rows a second: luthier over trl" if peers else "rows a second",
        lambda row: " ".join(
            row[name] for name in ("stage", "reference", "dtype", "split", "peer")
        ),
        "ratio" if peers else "luthier_per_s",
        line=1.0 if peers else None,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--models", nargs="+", default=["smollm2"], help="also: qwen2, tiny")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--splits", nargs="+", default=["4x1", "8x1", "1x8"])
    parser.add_argument("--reference", nargs="+", default=["live", "precomputed"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--pairs", type=int, default=3, help="runs of every side")
    parser.add_argument("--steps", type=int, default=5, help="of a run; the first does not count")
    parser.add_argument("--cutoff_len", type=int, default=1024)
    parser.add_argument("--data", help="pairs of answers; without it random ones of usual lengths")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    figures.add_options(parser, __file__)
    options = parser.parse_args(words)
    if options.steps < 2:
        parser.error("--steps: at least 2, for the first does not count")
    return options


def measure(
    options: argparse.Namespace,
    table: figures.Table,
    peers: list[str],
    model: str,
    dtype: str,
    folder: str,
    rows: str,
    stage: str,
    reference: str,
    split: str,
) -> None:
    """All sides in turns; a line and a row for each peer, or for luthier alone."""
    template = material.TEMPLATES[model]
    config = material.configuration(
        folder, rows, template, folder, split=split, steps=options.steps, dtype=dtype
    )
    config |= {"stage": stage, "cutoff_len": options.cutoff_len, "disable_shuffling": True}
    if reference:
        config["precompute_ref"] = reference == "precomputed"
    outcomes: dict[str, list[dict[str, Any]]] = {side: [] for side in ["luthier", *peers]}
    for _, side in sides.turns(list(outcomes), options.pairs):
        said = {"side": side, "config": config}
        outcomes[side].append(sides.run("preference:run", said, options.threads).value)
    clock = "cpu" if options.cpu_time else "wall"
    speeds = {
        side: [each["examples"] / each[clock] for each in values]
        for side, values in outcomes.items()
    }
    memory = {
        side: [(each["memory"]["peak"] - each["memory"]["before"]) / 2**20 for each in values]
        for side, values in outcomes.items()
    }
    ours = figures.Spread.of(speeds["luthier"])
    subject = f"{stage} {reference}".strip()
    print(f"{subject}, {model}, {dtype}, {split}: luthier {ours} rows/s", flush=True)
    for peer in peers or ["none"]:
        row: dict[str, Any] = {
            "stage": stage,
            "reference": reference,
            "model": model,
            "data": Path(options.data).name if options.data else "random words",
            "dtype": dtype,
            "split": split,
            "peer": PEERS.get(peer, ""),
            "clock": clock,
            "pairs": options.pairs,
            "steps": options.steps,
            "threads": options.threads,
            "luthier_per_s": round(ours.median, 3),
            "luthier_mib": round(figures.Spread.of(memory["luthier"]).median),
        }
        if peer in outcomes:
            ratio = figures.ratios(speeds["luthier"], speeds[peer])
            share = figures.ratios(memory["luthier"], memory[peer])
            losses = [outcomes[side][-1]["losses"] for side in ("luthier", peer)]
            row |= {
                "peer_per_s": round(figures.Spread.of(speeds[peer]).median, 3),
                "peer_mib": round(figures.Spread.of(memory[peer]).median),
                **ratio.columns("ratio"),
                **share.columns("memory"),
                "losses": " ".join(f"{loss:.4f}" for loss in losses[0]),
                "peer_losses": " ".join(f"{loss:.4f}" for loss in losses[1]),
            }
            print(
                f"    {PEERS[peer]}: {ratio}x of {options.pairs} pairs, {share} of its memory; "
                f"losses {row['losses']} | {row['peer_losses']}",
                flush=True,
            )
        table.add(row)


def run(side: str, config: dict[str, Any]) -> dict[str, Any]:
    """One run of one side, in a process of its own."""
    from benchmarks import peers

    if side == "luthier":
        return peers.train(side, config, is_watching=True)
    clock = peers.Clock(is_watching=True)
    history = train_by_trl(config, clock, is_checkpointing=side.endswith("checkpointing"))
    step = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
    return clock.value(history) | {"examples": step * (config["max_steps"] - peers.WARM_STEPS)}


def train_by_trl(config: dict[str, Any], clock: Any, *, is_checkpointing: bool) -> Any:
    """The same stage by trl's trainer, on the rows as luthier encodes them."""
    import datasets
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from benchmarks import peers
    from luthier.example import read_examples

    stage = config["stage"]
    tokenizer, table = peers.encode(config)
    rows = [form(stage, each) for each in read_examples(table.with_format("arrow")[:])]
    if stage == "kto":  # the prompt of a row beside the answer of the one before
        for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True):
            row["KL_completion_ids"] = before["completion_ids"]
    kind: Any = AutoModelForSequenceClassification if stage == "rm" else AutoModelForCausalLM
    dtype = "auto" if config["bf16"] else torch.float32
    labels = {"num_labels": 1} if stage == "rm" else {}
    model = kind.from_pretrained(config["model_name_or_path"], dtype=dtype, **labels)
    model.config.pad_token_id = tokenizer.pad_token_id
    adapter = peft.LoraConfig(
        r=peers.LORA_RANK,
        lora_alpha=2 * peers.LORA_RANK,
        target_modules="all-linear",
        task_type="SEQ_CLS" if stage == "rm" else "CAUSAL_LM",
    )
    own = {"precompute_ref_log_probs": config["precompute_ref"]} if stage == "dpo" else {}
    trainer = trainer_of(stage)(
        model=model,
        args=settings_of(stage)(
            **peers._settings(config),
            **own,
            learning_rate=5e-5,
            gradient_checkpointing=is_checkpointing,
            train_sampling_strategy="sequential",
            max_length=config["cutoff_len"],
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[clock],
    )
    trainer.train()
    return trainer.state.log_history


BY_TRL = {"dpo": "DPO", "kto": "KTO", "rm": "Reward"}
"""Stages -> how trl's trainer and its settings begin."""


def trainer_of(stage: str) -> Any:
    """Trl's trainer, its rows encoded already."""
    import trl

    class Given(getattr(trl, f"{BY_TRL[stage]}Trainer")):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return Given


def settings_of(stage: str) -> Any:
    """The class of its settings."""
    import trl

    return getattr(trl, f"{BY_TRL[stage]}Config")


def form(stage: str, example: Any) -> dict[str, Any]:
    """An example in the columns that trl's collators read."""
    answers = []
    for part in example.each_sequence():
        first = next(at for at, label in enumerate(part.labels) if label >= 0)
        ids = part.input_ids.tolist()
        answers.append((ids[:first], ids[first:]))
    prompt, answer = answers[0]
    if stage == "kto":
        is_wanted = bool(example.sequence_numbers["label"][0])
        return {"prompt_ids": prompt, "completion_ids": answer, "label": is_wanted}
    other, rejected = answers[1]
    if stage == "rm":
        margins = example.sequence_numbers.get("margin")
        margin = {} if margins is None else {"margin": float(margins[0])}
        return {"chosen_ids": prompt + answer, "rejected_ids": other + rejected, **margin}
    return {"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": rejected}


if __name__ == "__main__":
    main()
