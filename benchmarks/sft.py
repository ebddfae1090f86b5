"""Training speed of luthier against transformers' Trainer with peft and a padding collator.

Both train a LoRA on the same encoded rows of data/identity.json, on the same random model of
Qwen2's shape, with the same seed, dtype, threads and checkpointing, in turns: one process a run,
luthier first in odd pairs. What is compared is the trainer's own `train_samples_per_second`, so
neither loading nor encoding counts. The rows end in benchmarks/sft.csv.

    python benchmarks/sft.py --pairs 3 --steps 15
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROWS = Path("data/identity.json")
RESULTS = Path(__file__).with_suffix(".csv")
SPLITS = ("1x8", "8x1")
SIDES = ("luthier", "trainer")
LORA_RANK = 8


def main() -> None:
    """Runs all pairs, prints the ratios, keeps the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", nargs=4, metavar=("SIDE", "SPLIT", "CHECKPOINTING", "FOLDER"))
    options = parser.parse_args()
    if options.run:
        side, split, checkpointing, folder = options.run
        run(side, split, checkpointing == "on", Path(folder), options.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        for checkpointing in ("off", "on"):
            for split in SPLITS:
                speeds = measure(options, split, checkpointing, folder)
                report(options, split, checkpointing, speeds)


def measure(
    options: argparse.Namespace, split: str, checkpointing: str, folder: str
) -> dict[str, list[float]]:
    """Examples per second of each side, pair by pair."""
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for pair in range(options.pairs):
        for side in SIDES if pair % 2 == 0 else reversed(SIDES):
            words = [sys.executable, __file__, "--steps", str(options.steps)]
            words += ["--run", side, split, checkpointing, folder]
            done = subprocess.run(
                words,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            speeds[side].append(json.loads(done.stdout.splitlines()[-1]))
    return speeds


def report(
    options: argparse.Namespace, split: str, checkpointing: str, speeds: dict[str, list[float]]
) -> None:
    """Prints one line and appends one row."""
    ours, theirs = speeds["luthier"], speeds["trainer"]
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    row = {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "split": split,
        "checkpointing": checkpointing,
        "pairs": options.pairs,
        "steps": options.steps,
        "threads": options.threads,
        "luthier_per_s": round(statistics.median(ours), 2),
        "trainer_per_s": round(statistics.median(theirs), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        **{name: version(name) for name in ("luthier", "torch", "transformers", "peft")},
    }
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
    print(
        f"{split}, checkpointing {checkpointing}: luthier {row['luthier_per_s']} examples/s, "
        f"Trainer {row['trainer_per_s']}: {row['ratio']}x ({row['ratio_min']} to "
        f"{row['ratio_max']}, {options.pairs} pairs)",
        flush=True,
    )


def run(side: str, split: str, checkpointing: bool, folder: Path, steps: int) -> None:
    """One training run of one side; its last line of output is the speed."""
    batch, accumulation = map(int, split.split("x"))
    config: dict[str, Any] = {
        "model_name_or_path": str(folder),
        "dataset": str(ROWS),
        "template": "chatml",
        "do_train": True,
        "output_dir": str(folder / "run"),
        "overwrite_output_dir": True,
        "lora_rank": LORA_RANK,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": checkpointing,
        "use_cpu": True,
    }
    speed = run_luthier(config) if side == "luthier" else run_trainer(config)
    print(json.dumps(speed))


def run_luthier(config: dict[str, Any]) -> float:
    """Examples per second of `luthier.train`."""
    import luthier

    return float(luthier.train(config).metrics["train_samples_per_second"])


def run_trainer(config: dict[str, Any]) -> float:
    """Examples per second of transformers' Trainer on the rows that luthier encodes."""
    import peft
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    from luthier.arguments.parse import parse_dict
    from luthier.data.pipeline import load_datasets
    from luthier.templates.choose import choose_template
    from luthier.templates.fit import fit_tokenizer

    arguments = parse_dict(config)
    folder = config["model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = choose_template(arguments.data, tokenizer)
    fit_tokenizer(tokenizer, template)
    rows = load_datasets(arguments, template, tokenizer).train
    assert rows is not None
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear"),
    )
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps")
    names += ("logging_steps", "save_strategy", "gradient_checkpointing", "use_cpu", "output_dir")
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            **{name: config[name] for name in names}, disable_tqdm=True, report_to=[]
        ),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
    )
    return float(trainer.train().metrics["train_samples_per_second"])


def make_model(folder: Path) -> None:
    """A random model of Qwen2's shape, 19 million parameters, 16,384 rows of vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(ROWS)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=16_384,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
