"""The same fine-tuning by luthier, by transformers' Trainer with peft, and by trl's SFTTrainer."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers import TrainerCallback

from benchmarks.material import LORA_RANK

SIDES = {
    "luthier": "luthier",
    "trainer": "Trainer",
    "trainer-checkpointing": "Trainer, checkpointing",
    "trl": "SFTTrainer",
    "trl-packing": "SFTTrainer, packing",
}
"""Names of the sides -> how they read in a table."""

PACKED_LENGTH = 1024
"""Tokens of a row that trl packs."""

Config = dict[str, Any]


WARM_STEPS = 1
"""Steps that do not count: memory is taken for the first time, and rates are found out."""


class Clock(TrainerCallback):
    """Measures the steps after the warm ones in wall and processor time, and the memory of all.

    The low-rank matrices begin with the same numbers on every side.

    Args:
        is_watching: whether memory is looked at, by a thread.
    """

    def __init__(self, *, is_watching: bool = False) -> None:
        self.begun: tuple[float, float] | None = None
        self.ended: tuple[float, float] | None = None
        self.memory = Memory() if is_watching else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the adapter's first numbers; memory counts from here."""
        for name, parameter in kwargs["model"].named_parameters():
            if "lora_A" in name:
                short = name[name.index("layers.") :] if "layers." in name else name
                generator = torch.Generator().manual_seed(crc32(short.encode()))
                bound = parameter.shape[-1] ** -0.5
                start = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.data.copy_(start)
        if self.memory is not None:
            self.memory.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins to measure when the warm steps are done."""
        if state.global_step == WARM_STEPS:
            self.begun = (time.perf_counter(), time.process_time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the moment."""
        self.ended = (time.perf_counter(), time.process_time())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Memory is not looked at any more."""
        if self.memory is not None:
            self.memory.stop()

    def seconds(self, clock: int) -> float:
        """From the end of the warm steps to the end of the last, by wall (0) or processor (1)."""
        assert self.begun is not None
        assert self.ended is not None
        return self.ended[clock] - self.begun[clock]

    def value(self, log_history: list[dict[str, float]]) -> dict[str, Any]:
        """All that was noted, as JSON can hold it."""
        return {
            "wall": self.seconds(0),
            "cpu": self.seconds(1),
            "losses": [record["loss"] for record in log_history if "loss" in record],
            "memory": None if self.memory is None else self.memory.value(),
        }


class Memory:
    """Resident memory of this process, looked at every few milliseconds (Linux)."""

    INTERVAL_S = 0.003

    def __init__(self) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.peak = 0

    def start(self) -> None:
        """Counts from here; what was freed before is given back to the system first."""
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        self.before = self.peak = self.now()
        self._thread.start()

    def stop(self) -> None:
        """Looks a last time."""
        self._ends.set()
        self._thread.join()

    def now(self) -> int:
        """Bytes in use."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * self._page

    def value(self) -> dict[str, int]:
        """Bytes before the first step, the most after it, and the most of the whole process."""
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"before": self.before, "peak": self.peak, "whole": max(whole, self.peak)}

    def _watch(self) -> None:
        while not self._ends.wait(self.INTERVAL_S):
            self.peak = max(self.peak, self.now())


def train(side: str, config: Config, is_watching: bool = False) -> dict[str, Any]:
    """One run of one side.

    Returns:
        `wall` and `cpu`, the seconds of all steps but the warm ones; `examples`, how many those
        steps took; the `losses` as logged; `memory` in bytes when it was watched.
    """
    clock = Clock(is_watching=is_watching)
    examples = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
    if side == "luthier":
        import luthier

        history = luthier.train(config, callbacks=[clock]).log_history
    elif side.startswith("trainer"):
        history = _train_plainly(config, clock, is_checkpointing=side.endswith("checkpointing"))
    else:
        history, share = _train_trl(config, clock, is_packing=side.endswith("packing"))
        examples *= share
    return clock.value(history) | {"examples": examples * (config["max_steps"] - WARM_STEPS)}


def _train_plainly(
    config: Config, clock: Clock, *, is_checkpointing: bool
) -> list[dict[str, float]]:
    """What a user of transformers and peft writes by hand."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer, rows = _material(config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**_settings(config), gradient_checkpointing=is_checkpointing),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
        callbacks=[clock],
    )
    trainer.train()
    history: list[dict[str, float]] = trainer.state.log_history
    return history


def _train_trl(
    config: Config, clock: Clock, *, is_packing: bool
) -> tuple[list[dict[str, float]], float]:
    """The same by trl, without checkpointing; a packed row counts as the examples it holds."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, rows = _material(config)
    settings = _settings(config)
    if is_packing:
        settings["per_device_train_batch_size"] = max(config["per_device_train_batch_size"] // 4, 1)
        settings["gradient_accumulation_steps"] = max(config["gradient_accumulation_steps"] // 4, 1)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **settings,
            gradient_checkpointing=False,
            packing=is_packing,
            max_length=PACKED_LENGTH if is_packing else None,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    share = 1.0
    if is_packing:
        step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        asked = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        share = step / asked * len(rows) / len(trainer.train_dataset)
    history: list[dict[str, float]] = trainer.state.log_history
    return history, share


def _material(config: Config) -> tuple[Any, Any, Any]:
    """The model with its adapter, the tokenizer, and the rows as luthier encodes them."""
    import peft
    from transformers import AutoModelForCausalLM

    tokenizer, rows = encode(config)
    rows = rows.select_columns(["input_ids", "labels"])
    model = AutoModelForCausalLM.from_pretrained(
        config["model_name_or_path"], dtype="auto" if config["bf16"] else torch.float32
    )
    adapter = peft.LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, adapter), tokenizer, rows


def encode(config: Config) -> tuple[Any, Any]:
    """The tokenizer of a configuration, and the table of its rows as its stage encodes them."""
    from luthier.arguments.parse import parse_dict
    from luthier.data.pipeline import load_datasets
    from luthier.training.encoder import load_stage

    arguments = parse_dict(config)
    stage = load_stage(arguments)
    rows = load_datasets(arguments, stage).train
    assert rows is not None
    return stage.tokenizer, rows.table


def _settings(config: Config) -> dict[str, Any]:
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "bf16")
    names += ("logging_steps", "save_strategy", "use_cpu", "output_dir")
    return {name: config[name] for name in names} | {"disable_tqdm": True, "report_to": []}
