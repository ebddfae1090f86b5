"""What each kind of fused layer saves of a micro-batch, forward and backward.

The same micro-batch with all fused layers, without one kind of them, and with none, in turns in one
process: seconds of it, and bytes that autograd keeps. A ratio above 1 is what the kind saves.
The rows end in benchmarks/fused.csv.

    python benchmarks/fused.py --threads 1
    python benchmarks/fused.py --methods lora --dtypes bfloat16 --tokens 1024
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material

KINDS = ("linear layers", "feed-forward layers", "norms", "rotary embeddings")

VARIANTS = {"all": (), **{f"without {kind}": (kind,) for kind in KINDS}, "none": KINDS}


def main(words: list[str] | None = None) -> None:
    """Measures each way to learn, prints the ratios, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    models = material.each_model(options.models, ["float32"], options.smollm2, options.threads)
    for model, _, folder in models:
        for method in options.methods:
            for dtype in options.dtypes:
                if dtype == "bfloat16" and material.is_emulated():
                    figures.skip(f"{method} in {dtype}", "this processor would emulate it")
                    continue
                measure(options, table, model, folder, method, dtype)
    table.draw(
        "a micro-batch without a kind of fused layers, over one with all of them",
        lambda row: f"{row['model']} {row['method']} {row['dtype']}, {row['variant']}",
        "time_ratio",
        line=1.0,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2"], help="also: qwen2, tiny")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=768, help="of a micro-batch")
    parser.add_argument("--pairs", type=int, default=5)
    figures.add_options(parser, __file__)
    return parser.parse_args(words)


def measure(
    options: argparse.Namespace,
    table: figures.Table,
    name: str,
    folder: str,
    method: str,
    dtype: str,
) -> None:
    """All variants of one way to learn, in turns."""
    import torch
    from transformers import AutoTokenizer

    from luthier.arguments.parse import parse_dict
    from luthier.batching.tree import build_tree
    from luthier.example import Example
    from luthier.fused.fuse import fuse
    from luthier.fused.layers import FusedForward
    from luthier.modeling.attention.interface import install_tree_attention
    from luthier.modeling.loader import load_model
    from luthier.modeling.memory import measure_activations
    from luthier.modeling.reads import read_nll

    torch.set_num_threads(options.threads)
    settings = {
        "model_name_or_path": folder,
        "finetuning_type": method,
        "bf16": dtype == "bfloat16",
        "dataset": "none",
        "template": material.TEMPLATES[name],
        "output_dir": str(Path(folder) / "out"),
        "do_train": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = load_model(parse_dict(settings), tokenizer, is_trainable=True)
    install_tree_attention(model)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, len(tokenizer), (8, options.tokens // 8), generator=draw).tolist()
    batch = build_tree([Example(input_ids=row, labels=row) for row in ids], share_prefixes=True)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    kept: dict[str, int] = {}
    for pair in range(-1, options.pairs):
        for variant, left_out in VARIANTS.items():
            fuse(model)
            for module in model.modules():
                forward = vars(module).get("forward")
                if isinstance(forward, FusedForward) and forward.kind in left_out:
                    del module.forward
            if pair < 0:
                activations = measure_activations(model, autocast, is_padded=False)
                kept[variant] = activations.of(options.tokens, options.tokens // 8)
            begun = time.process_time()
            with autocast():
                loss = read_nll(model, batch).total
            loss.backward()
            model.zero_grad()
            if pair >= 0:
                seconds[variant].append(time.process_time() - begun)
    for variant in VARIANTS:
        spread = figures.ratios(seconds[variant], seconds["all"])
        memory = kept[variant] / kept["all"]
        print(f"{name} {method} {dtype}, {variant}: {spread}, activations {memory:.2f}", flush=True)
        table.add(
            {
                "model": name,
                "method": method,
                "dtype": dtype,
                "variant": variant,
                "tokens": options.tokens,
                "threads": options.threads,
                "pairs": options.pairs,
                **figures.Spread.of(seconds[variant]).columns("seconds"),
                **spread.columns("time_ratio"),
                "kept_mib": round(kept[variant] / 2**20, 1),
                "kept_ratio": round(memory, 3),
            }
        )


if __name__ == "__main__":
    main()
