"""whole runs with drawn arguments: each ends with a result, or with an error that says what to do

    python -m tests.chaos.fuzz --runs 5000
    python -m tests.chaos.fuzz --runs 2000 --record before.jsonl
    python -m tests.chaos.fuzz --runs 2000 --against before.jsonl

A run draws three to nine of about seventy arguments over a short training of a tiny model, in this
process. One in five is begun a second time in its folder, as users do. `--record` writes how each
ended, `--against` compares with such a file: the same end at the same step, and bit-equal losses.
Half precision is computed as it is asked for, also where a processor emulates it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as library_logging

import luthier
from luthier.errors import LuthierError
from luthier.modeling import dtypes
from tests import tiny

LOGGED = ("loss", "grad_norm", "learning_rate", "eval_loss", "eval_accuracy")


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        number: of the run.
        drawn: its arguments beside the common ones.
        kind: `result`, `refused` by an error of ours, or `broke` by another exception.
        error: the class of the error.
        text: its first lines, or the traceback of what broke.
        steps: updates made.
        logged: step and name -> number, of `LOGGED`.
    """

    number: int
    drawn: dict[str, Any]
    kind: str
    error: str = ""
    text: str = ""
    steps: int = 0
    logged: dict[str, float] = field(default_factory=dict)


def make_workshop(folder: Path) -> None:
    """Writes tiny models, adapters' bases, rows of every form, and texts."""
    llama = tiny.make_llama()
    tiny.save(folder / "llama", llama)
    tiny.save(folder / "llama-bf16", llama.to(torch.bfloat16))
    tiny.save(folder / "tied-fp16", tiny.make_llama(tie_word_embeddings=True).half())
    tiny.save(folder / "qwen2", tiny.make_qwen2())
    tiny.save(folder / "gpt2", tiny.make_gpt2())
    plain = tiny.make_tokenizer(chat_template=None)
    tiny.save(folder / "no-template", tiny.make_llama(seed=1), plain)
    counts = [" ".join(map(str, range(n % 9 + 1))) for n in range(24)]
    alpaca = [
        {"instruction": f"Count to {n % 9}.", "output": text} for n, text in enumerate(counts)
    ]
    turns = [
        [
            {"from": "human", "value": f"Count to {n % 9}."},
            {"from": "gpt", "value": text},
            {"from": "human", "value": "Again."},
            {"from": "gpt", "value": f"<think>\nAs before.\n</think>\n\n{text}"},
        ]
        for n, text in enumerate(counts)
    ]
    names = {"human": "user", "gpt": "assistant"}
    openai = [
        {"messages": [{"role": names[turn["from"]], "content": turn["value"]} for turn in row]}
        for row in turns
    ]
    _write_rows(folder / "alpaca.jsonl", alpaca)
    _write_rows(folder / "sharegpt.jsonl", [{"conversations": row} for row in turns])
    _write_rows(folder / "openai.jsonl", openai)
    _write_rows(folder / "few.jsonl", alpaca[:3])
    _write_rows(folder / "spoilt.jsonl", [*alpaca, {"instruction": "Nothing follows."}])
    _write_rows(
        folder / "text.jsonl", [{"text": f"Chapter {n}. {text}"} for n, text in enumerate(counts)]
    )
    _write_rows(folder / "weighted.jsonl", [row | {"w": n % 3} for n, row in enumerate(alpaca)])
    info: dict[str, dict[str, Any]] = {
        name: {"file_name": f"{name}.jsonl"} for name in ("alpaca", "few", "spoilt", "text")
    }
    info["sharegpt"] = {"file_name": "sharegpt.jsonl", "formatting": "sharegpt"}
    info["openai"] = {
        "file_name": "openai.jsonl",
        "formatting": "openai",
        "columns": {"messages": "messages"},
    }
    info["weighted"] = {
        "file_name": "weighted.jsonl",
        "columns": {"prompt": "instruction", "response": "output", "weight": "w"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "words.yaml").write_text('"<mark>": a mark between two parts\n')


def knobs(folder: Path) -> dict[str, tuple[Any, ...]]:
    """The arguments that are drawn, with the values they may take."""
    models = ("llama", "llama-bf16", "tied-fp16", "qwen2", "gpt2", "no-template", "absent")
    return {
        # the model
        "model_name_or_path": tuple(str(folder / name) for name in models),
        "resize_vocab": (True,),
        "add_tokens": ("<one>", "<one>,<two>"),
        "add_special_tokens": ("<three>", "<|im_start|>"),
        "new_special_tokens_config": (str(folder / "words.yaml"),),
        "init_special_tokens": ("desc_init", "desc_init_w_noise"),
        "rope_scaling": ("linear", "dynamic", "yarn", "llama3"),
        "flash_attn": ("disabled", "sdpa"),
        "train_from_scratch": (True,),
        "upcast_layernorm": (True,),
        "use_reentrant_gc": (False,),
        "split_special_tokens": (True,),
        # the method
        "stage": ("pt", "pt", "dpo"),
        "finetuning_type": ("full", "freeze", "lora", "oft"),
        "freeze_trainable_layers": (1, -1, 3),
        "freeze_extra_modules": ("norm", "embed_tokens", "lm_head"),
        "freeze_trainable_modules": ("mlp", "self_attn", "absent"),
        "additional_target": ("norm", "embed_tokens", "lm_head", "embed_tokens,lm_head", "absent"),
        "lora_target": ("q_proj,v_proj", "q_proj,embed_tokens", "lm_head", "c_attn", "absent"),
        "lora_rank": (1, 4, 64),
        "lora_alpha": (1, 16),
        "lora_dropout": (0.1,),
        "use_dora": (True,),
        "use_rslora": (True,),
        "pissa_init": (True,),
        "pissa_iter": (-1, 2),
        "pissa_convert": (True,),
        "loraplus_lr_ratio": (16.0,),
        "disable_shuffling": (True,),
        "compute_accuracy": (True,),
        "early_stopping_steps": (1, 3),
        "plot_loss": (True,),
        "include_effective_tokens_per_second": (True,),
        # the data
        "dataset": ("sharegpt", "openai", "text", "few", "spoilt", "weighted", "alpaca,sharegpt"),
        "eval_dataset": ("few", "alpaca,openai", "text"),
        "val_size": (0.25, 4, 1000),
        "template": ("qwen3", "llama3", "empty", "default", "gemma", None),
        "cutoff_len": (1, 12, 24),
        "on_overlong": ("drop", "split", "error"),
        "packing": (True, False),
        "neat_packing": (True, False),
        "train_on_prompt": (True,),
        "mask_history": (True,),
        "mix_strategy": ("interleave_under", "interleave_over", "interleave_once"),
        "interleave_probs": ("0.3,0.7", "0.5"),
        "streaming": (True,),
        "buffer_size": (4,),
        "max_samples": (2, 10),
        "eval_on_each_dataset": (True,),
        "enable_thinking": (False, None),
        "preserve_thinking": (True,),
        "default_system": ("You count.",),
        "max_bad_rows": (0, 5),
        # the steps
        "per_device_train_batch_size": (1, 5, 64),
        "gradient_accumulation_steps": (1, 3),
        "tokens_per_micro_batch": (16, 64),
        "num_train_epochs": (0.5, 2.0),
        "max_steps": (1, 5, -1),
        "learning_rate": (0.0, 1e-4, 1e3),
        "weight_decay": (0.1,),
        "max_grad_norm": (0.0, 0.1),
        "lr_scheduler_type": (
            "cosine",
            "constant",
            "polynomial",
            "inverse_sqrt",
            "cosine_with_min_lr",
            "warmup_stable_decay",
            "reduce_lr_on_plateau",
            "greedy",
        ),
        "lr_scheduler_kwargs": (
            {"num_cycles": 2},
            {"min_lr": 1e-5},
            {"num_stable_steps": 1},
            {"x": 1},
        ),
        "warmup_ratio": (0.5,),
        "warmup_steps": (1, 0.3),
        "optim": ("sgd", "adafactor", "adagrad", "rmsprop", "adamw_torch", "lion_8bit", "lomo"),
        "optim_args": ("amsgrad=true", "momentum=0.9", "nothing=1", "betas"),
        "label_smoothing_factor": (0.1,),
        "neftune_noise_alpha": (5.0,),
        "on_nonfinite": ("skip",),
        # precision and layout
        "bf16": (True,),
        "fp16": (True,),
        "pure_bf16": (True,),
        "bf16_full_eval": (True,),
        "layout": ("tree", "padded"),
        "prefix_sharing": ("off",),
        "gradient_checkpointing": (True, False),
        "gradient_checkpointing_kwargs": ({"use_reentrant": False}, {"nothing": 1}),
        # evaluation, saving, logging
        "do_eval": (True,),
        "do_predict": (True,),
        "predict_with_generate": (True,),
        "max_new_tokens": (1, 3),
        "num_beams": (2,),
        "eval_strategy": ("steps", "epoch"),
        "eval_steps": (1, 2),
        "eval_on_start": (True,),
        "per_device_eval_batch_size": (1, 3),
        "save_strategy": ("steps", "epoch", "best"),
        "save_steps": (1, 2),
        "save_total_limit": (1,),
        "save_only_model": (True,),
        "load_best_model_at_end": (True,),
        "metric_for_best_model": ("loss", "eval_loss", "accuracy", "absent"),
        "logging_strategy": ("epoch", "no"),
        "train_sampling_strategy": ("group_by_length", "sequential"),
        "dataloader_drop_last": (True,),
        "seed": (0, 7),
    }


ROWS = {"val_size": 4}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1} | ROWS
COMPANIONS: dict[str, dict[str, Any]] = {
    "do_eval": ROWS,
    "do_predict": {"predict_with_generate": True} | ROWS,
    "predict_with_generate": {"do_predict": True} | ROWS,
    "eval_on_start": EVALUATED,
    "eval_strategy": ROWS,
    "compute_accuracy": EVALUATED,
    "early_stopping_steps": EVALUATED,
    "load_best_model_at_end": {"save_strategy": "steps", "save_steps": 1} | EVALUATED,
    "metric_for_best_model": {"save_strategy": "best"} | EVALUATED,
    "save_total_limit": {"save_strategy": "steps", "save_steps": 1},
    "save_only_model": {"save_strategy": "steps", "save_steps": 1},
    "interleave_probs": {"mix_strategy": "interleave_under", "dataset": "alpaca,sharegpt"},
    "mix_strategy": {"dataset": "alpaca,few"},
    "pissa_convert": {"pissa_init": True},
    "pissa_iter": {"pissa_init": True},
    "train_from_scratch": {"finetuning_type": "full"},
    "freeze_trainable_layers": {"finetuning_type": "freeze"},
    "freeze_trainable_modules": {"finetuning_type": "freeze"},
    "freeze_extra_modules": {"finetuning_type": "freeze"},
    "stage": {"dataset": "text"},
    "buffer_size": {"streaming": True},
}
"""What an argument needs beside it to mean anything; three times in four it comes along."""


def draw(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """The arguments of a run: the same for the same number and seed."""
    chance = random.Random(f"{seed}/{number}")
    values = knobs(folder)
    names = chance.sample(sorted(values), chance.randint(3, 9))
    drawn = {name: chance.choice(values[name]) for name in names}
    for name in names:
        if chance.random() < 0.75:
            drawn = COMPANIONS.get(name, {}) | drawn
    return drawn


def try_run(number: int, drawn: Mapping[str, Any], folder: Path, twice: bool) -> End:
    """Trains as the drawn arguments say, and tells how that ended."""
    output = folder / "runs" / str(number)
    arguments = {
        "model_name_or_path": str(folder / "llama"),
        "template": "chatml",
        "dataset": "alpaca",
        "dataset_dir": str(folder),
        "do_train": True,
        "use_cpu": True,
        "cutoff_len": 64,
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "max_steps": 3,
        "max_new_tokens": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    } | drawn
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            result = luthier.train(dict(arguments))
            if twice:
                luthier.train(dict(arguments))
    except LuthierError as problem:
        state = output / "trainer_state.json"
        steps = json.loads(state.read_text())["global_step"] if state.is_file() else 0
        text = _without_folder(str(problem), folder)
        return End(number, dict(drawn), "refused", type(problem).__name__, text[:400], steps)
    except Exception as problem:
        text = _without_folder(traceback.format_exc(), folder)
        return End(number, dict(drawn), "broke", type(problem).__name__, text)
    logged = {
        f"{record['step']} {name}": record[name]
        for record in result.log_history
        for name in LOGGED
        if name in record
    }
    last = max((int(record["step"]) for record in result.log_history), default=0)
    return End(number, dict(drawn), "result", steps=last, logged=logged)


def try_runs(folder: Path, numbers: range, seed: int = 0) -> Iterator[End]:
    """Runs one after the other in this process; each folder is removed when its run has ended."""
    import shutil

    with _computing_halves(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library_logging.set_verbosity_error()
        for number in numbers:
            drawn = draw(number, seed, folder)
            yield try_run(number, drawn, folder, twice=number % 5 == 0)
            shutil.rmtree(folder / "runs", ignore_errors=True)
            if number % 50 == 0:
                gc.collect()


def differences(expected: Mapping[int, Mapping[str, Any]], found: End) -> list[str]:
    """What a run does otherwise than the recorded one."""
    before = expected.get(found.number)
    if before is None:
        return [f"run {found.number} is not in the record"]
    now = json.loads(json.dumps(asdict(found)))
    return [
        f"run {found.number} {found.drawn}: {name} {now[name]!r}, was {before[name]!r}"
        for name in ("kind", "error", "steps", "logged")
        if now[name] != before[name] and not (now[name] != now[name])
    ]


@contextlib.contextmanager
def _computing_halves() -> Iterator[None]:
    asked = dtypes.is_emulated
    dtypes.is_emulated = lambda dtype, use_cpu: False
    try:
        yield
    finally:
        dtypes.is_emulated = asked


def _without_folder(text: str, folder: Path) -> str:
    return text.replace(str(folder), "FOLDER")


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Runs as many as the command line asks for; ends with 1 if any broke or differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1500)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="a file for how each run ended")
    parser.add_argument("--against", type=Path, help="such a file to compare with")
    asked = parser.parse_args()
    expected = {}
    if asked.against:
        lines = asked.against.read_text().splitlines()
        expected = {end["number"]: end for end in map(json.loads, lines)}
    ends: Counter[str] = Counter()
    told: list[str] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        from tests.chaos.trial import stand_alone

        folder = Path(name)
        stand_alone(folder / "trial")
        make_workshop(folder)
        record = stack.enter_context(asked.record.open("w")) if asked.record else None
        for end in try_runs(folder, range(asked.first, asked.first + asked.runs), asked.seed):
            ends[f"{end.kind} {end.error}".strip()] += 1
            if end.kind == "broke":
                told.append(f"run {end.number} {end.drawn}\n{end.text}")
                print(told[-1])
            elif expected:
                told += (found := differences(expected, end))
                print(*found, sep="\n", end="\n" if found else "")
            if record:
                print(json.dumps(asdict(end)), file=record, flush=True)
    for kind, count in ends.most_common():
        print(f"{count:6,} {kind}")
    print(f"{sum(ends.values()):,} runs in {time.monotonic() - begun:.0f} s, {len(told)} wrong")
    sys.exit(1 if told else 0)


if __name__ == "__main__":
    main()
