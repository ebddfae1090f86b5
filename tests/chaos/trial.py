"""real `luthier train` processes of a tiny model: started at once, signalled, killed, compared"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests import launched, tiny

KINDS = ("sft_lora", "sft_full", "pt_packed", "streaming")

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

PRELOADED = (
    *launched.PRELOADED,
    *(f"luthier.training.{name}" for name in ("trainer", "layout", "encoder", "report", "predict")),
    "luthier.data.pipeline",
    "luthier.modeling.loader",
    "luthier.modeling.tokenizer",
)

COMPARED = ("loss", "grad_norm", "learning_rate", "eval_loss")


@dataclass(frozen=True)
class Workshop:
    """A folder with a tiny model, rows, texts, and a configuration for each of `KINDS`.

    Attributes:
        folder: holds all of it.
        overrides: further arguments of every run.
    """

    folder: Path
    overrides: Mapping[str, object] = field(default_factory=dict)

    def make(self) -> Workshop:
        """Writes the files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tiny.save(self.folder / "model", tiny.make_llama())
        rows = [
            {"instruction": f"Count to {n % 9}.", "output": " ".join(map(str, range(n % 9 + 1)))}
            for n in range(60)
        ]
        (self.folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        texts = [
            {"text": f"Chapter {n}. He carves {n % 5} necks from maple. " * 3} for n in range(200)
        ]
        (self.folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
        return self

    def arguments(self, output_dir: Path, kind: str = "sft_lora", **more: object) -> dict[str, Any]:
        """A run of 40 steps, 4 examples each, over several epochs, that saves every 2 steps."""
        common = {
            "model_name_or_path": self.folder / "model",
            "template": "chatml",
            "dataset": self.folder / "rows.jsonl",
            "do_train": True,
            "cutoff_len": 64,
            "output_dir": output_dir,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-3,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "max_steps": 40,
            "logging_steps": 1,
            "save_steps": 2,
            "save_total_limit": 3,
            "report_to": "none",
        }
        lora = {"lora_target": "all", "lora_rank": 4, "lora_dropout": 0.1}
        full = {"finetuning_type": "full", "learning_rate": 1e-3}
        kinds: dict[str, dict[str, object]] = {
            "sft_lora": lora,
            "sft_full": full,
            "pt_packed": {"stage": "pt", "dataset": self.folder / "texts.jsonl", **full},
            "streaming": {"streaming": True, "buffer_size": 16, **lora},
        }
        values = {**common, **kinds[kind], **self.overrides, **more}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def words_of(arguments: Mapping[str, Any]) -> list[str]:
    """The command line that gives the arguments."""
    return ["train", *(f"{name}={_text(value)}" for name, value in arguments.items())]


@contextmanager
def started(
    arguments: Mapping[str, Any],
    num_ranks: int = 1,
    prepare: Callable[[], None] | None = None,
    environment: Mapping[str, str] = {},
) -> Iterator[launched.Ranks]:
    """`luthier train` in a process forked from a warm one; killed when the context ends.

    `ranks.processes[0].pid` takes signals, `ranks.wait()[0]` says how it ended.

    Args:
        arguments: of the run.
        num_ranks: processes; a single one has no launcher.
        prepare: is called in each process before the command: a function of a module that can be
            imported, or a `functools.partial` of one.
        environment: further variables.
    """
    launched.PRELOADED = PRELOADED
    words = words_of(arguments)
    with launched.started_ranks(train, num_ranks, words, prepare, environment=environment) as ranks:
        yield ranks


def run(
    arguments: Mapping[str, Any],
    num_ranks: int = 1,
    prepare: Callable[[], None] | None = None,
    environment: Mapping[str, str] = {},
) -> list[launched.Ended]:
    """How a run ended, by rank; see `started`."""
    with started(arguments, num_ranks, prepare, environment) as ranks:
        return ranks.wait()


def run_well(arguments: Mapping[str, Any], num_ranks: int = 1, code: int = 0) -> launched.Ended:
    """The first rank of a run that must end with an exit code."""
    ended = run(arguments, num_ranks)
    codes = [each.exit_code for each in ended]
    assert codes == [code] * num_ranks, f"{codes}\n{ended[0].stderr[-3000:]}"
    return ended[0]


def train(words: list[str], prepare: Callable[[], None] | None) -> None:
    """What the process does: the command line, with its exit code."""
    if os.environ.get("WORLD_SIZE") == "1":
        for name in LAUNCHER:
            del os.environ[name]
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever began this may have had them ignored
        fresh = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, fresh)
    if prepare is not None:
        prepare()
    launched.run_luthier(words)


def differences(expected: Path, found: Path) -> list[str]:
    """What is not bit-equal in the output folders of two finished runs.

    Compared are the logged losses, gradient norms and learning rates of every step, the final
    weights, and the optimizer, schedule and random numbers of the last checkpoint.
    """
    told = [
        *_compare_logs(expected, found),
        *_compare_weights(expected, found),
    ]
    step = _last_step(expected)
    one, other = (folder / f"checkpoint-{step}" for folder in (expected, found))
    if not one.is_dir():
        return told
    if not other.is_dir():
        return [*told, f"{other} is absent"]
    told += _compare_weights(one, other)
    for file in sorted([*one.glob("*.pt"), *one.glob("rng_state*.pth")]):
        told += _compare_tensors(file, other / file.name)
    return told


def log_of(output_dir: Path) -> dict[tuple[int, str], float]:
    """Every number of `COMPARED` that a run has logged, by step and name."""
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return {
        (record["step"], name): record[name]
        for record in state["log_history"]
        for name in COMPARED
        if name in record
    }


def _compare_logs(expected: Path, found: Path) -> list[str]:
    one, other = log_of(expected), log_of(found)
    told = [
        f"step {step}: {name} {other.get((step, name))}, expected {value}"
        for (step, name), value in one.items()
        if other.get((step, name)) != value
    ]
    return told + [
        f"step {step}: {name} logged besides" for step, name in other.keys() - one.keys()
    ]


def _compare_weights(expected: Path, found: Path) -> list[str]:
    told = []
    for file in sorted(expected.glob("*.safetensors")):
        if not (found / file.name).is_file():
            told.append(f"{found / file.name} is absent")
            continue
        one, other = load_file(file), load_file(found / file.name)
        if one.keys() != other.keys():
            told.append(f"{found / file.name} holds other tensors")
            continue
        apart = [name for name in one if not torch.equal(one[name], other[name])]
        if apart:
            largest = max((one[n].double() - other[n].double()).abs().max().item() for n in apart)
            told.append(f"{found / file.name}: {len(apart)} tensors differ by up to {largest:.1e}")
    return told


def _compare_tensors(expected: Path, found: Path) -> list[str]:
    if not found.is_file():
        return [f"{found} is absent"]
    one, other = (torch.load(file, weights_only=False) for file in (expected, found))
    return [f"{found}{place} differs" for place in _apart(one, other)]


def _apart(one: Any, other: Any, place: str = "") -> Iterator[str]:
    if isinstance(one, torch.Tensor):
        if not (isinstance(other, torch.Tensor) and torch.equal(one, other)):
            yield place
    elif isinstance(one, Mapping):
        if not isinstance(other, Mapping) or one.keys() != other.keys():
            yield place
        else:
            for key in one:
                yield from _apart(one[key], other[key], f"{place}[{key!r}]")
    elif isinstance(one, list | tuple):
        if type(one) is not type(other) or len(one) != len(other):
            yield place
        else:
            for at, (first, second) in enumerate(zip(one, other, strict=True)):
                yield from _apart(first, second, f"{place}[{at}]")
    elif hasattr(one, "tobytes"):
        if one.tobytes() != other.tobytes():
            yield place
    elif one != other:
        yield place


def _last_step(output_dir: Path) -> int:
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return int(state["global_step"])


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def stand_alone(folder: Path) -> Workshop:
    """Sets up a script of this folder as the test suite does its tests; returns its workshop."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return Workshop(folder).make()
