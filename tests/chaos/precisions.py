"""half precision times method, extra, ties and stored dtype: each trains, resumes, predicts, chats

    python -m tests.chaos.precisions --methods lora freeze --precisions bf16

Each cell is a few steps of a tiny model in one process, its evaluation, a checkpoint and a run that
goes on from it, the result read back, predictions and an answer. Its numbers are held against a
float32 run of the same weights. Half precision is computed on every machine, emulated or not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import luthier
from luthier.commands.chat import read_arguments
from luthier.modeling import dtypes
from luthier.records import Message
from luthier.serving.engine import load_engine
from tests import tiny

METHODS = ("lora", "freeze", "full")

PRECISIONS = {"bf16": 2e-2, "fp16": 5e-3, "pure_bf16": 5e-2}
"""Half precision -> how far its losses may lie from those of float32, relatively."""

STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16}

OUTSIDE = {True: "norm,embed_tokens", False: "norm,embed_tokens,lm_head"}
"""Modules outside the layers, of a tied model and of one that is not."""

NEW_TOKENS = {"add_special_tokens": "<|think|>,<|call|>"}

EXTRAS = (
    "nothing",
    "additional_target",
    "new_tokens",
    "new_tokens_of_template",
    "dora",
    "pissa",
    "loraplus",
    "neftune",
    "dropout",
)

OF_LORA = {"dora", "pissa", "loraplus"}

DRAWS = {"neftune", "dropout"}
"""Extras whose random numbers differ from dtype to dtype."""

STEPS = 4


@dataclass(frozen=True)
class Cell:
    """One of the matrix.

    Attributes:
        method: `finetuning_type`.
        extra: of `EXTRAS`.
        is_tied: whether the head is the embeddings' matrix.
        precision: of `PRECISIONS`.
        stored: of `STORED`.
    """

    method: str
    extra: str
    is_tied: bool
    precision: str
    stored: str

    def __str__(self) -> str:
        tied = "tied" if self.is_tied else "untied"
        return f"{self.method} {self.extra} {tied} {self.precision} of {self.stored}"


@dataclass
class Workshop:
    """A folder with the models, the rows and what float32 made of them.

    Attributes:
        folder: holds all of it.
        losses: of float32 runs that were made already.
    """

    folder: Path
    losses: dict[object, list[float]] = field(default_factory=dict)

    def make(self) -> Workshop:
        """Writes models and rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, is_tied in itertools.product(STORED, (True, False)):
            for dropout in (0.0, 0.1):
                model = tiny.make_llama(
                    tie_word_embeddings=is_tied, attention_dropout=dropout, initializer_range=0.1
                )
                tiny.save(self.model(name, is_tied, dropout), model.to(STORED[name]))
        rows = [
            {"instruction": f"Count to {n % 9}.", "output": " ".join(map(str, range(n % 9 + 1)))}
            for n in range(24)
        ]
        self.rows.write_text(json.dumps(rows))
        return self

    @property
    def rows(self) -> Path:
        """The file of examples."""
        return self.folder / "rows.json"

    def model(self, stored: str, is_tied: bool, dropout: float = 0.0) -> Path:
        """The folder of a model."""
        return self.folder / f"{stored}-{'tied' if is_tied else 'untied'}-{dropout}"

    def arguments(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """Four steps of four examples, evaluated and saved every two."""
        layers = {"freeze_trainable_layers": 1} if cell.method == "freeze" else {}
        dropout = 0.1 if cell.extra == "dropout" and cell.method != "lora" else 0.0
        rate = 1e-2 if cell.method == "lora" else 2e-3
        return {
            "model_name_or_path": str(self.model(cell.stored, cell.is_tied, dropout)),
            "finetuning_type": cell.method,
            "dataset": str(self.rows),
            "template": "chatml",
            "cutoff_len": 64,
            "output_dir": str(folder),
            "do_train": True,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": rate,
            "max_steps": STEPS,
            "logging_steps": 1,
            "val_size": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "report_to": "none",
            "max_new_tokens": 4,
            "do_sample": False,
            **layers,
            **_extra(cell),
            **({cell.precision: True} if cell.precision in PRECISIONS else {}),
        }

    def expected(self, cell: Cell, folder: Path) -> list[float]:
        """The losses of the same run in float32."""
        key = (cell.method, cell.extra, cell.is_tied, cell.stored)
        if key not in self.losses:
            exact = Cell(*key[:3], "float32", cell.stored)
            result = luthier.train(self.arguments(exact, folder))
            self.losses[key] = losses(result)
        return self.losses[key]


def _extra(cell: Cell) -> dict[str, object]:
    match cell.extra:
        case "additional_target" if cell.method == "lora":
            return {"additional_target": OUTSIDE[cell.is_tied]}
        case "additional_target" if cell.method == "freeze":
            return {"freeze_extra_modules": OUTSIDE[cell.is_tied]}
        case "new_tokens":
            return dict(NEW_TOKENS)
        case "new_tokens_of_template":
            return {"template": "phi"}
        case "dora":
            return {"use_dora": True}
        case "pissa":
            return {"pissa_init": True, "pissa_iter": -1}
        case "loraplus":
            return {"loraplus_lr_ratio": 4.0}
        case "neftune":
            return {"neftune_noise_alpha": 5.0}
        case "dropout" if cell.method == "lora":
            return {"lora_dropout": 0.1}
    return {}


def cells(
    methods: Sequence[str] = METHODS,
    extras: Sequence[str] = EXTRAS,
    precisions: Sequence[str] = tuple(PRECISIONS),
) -> Iterator[Cell]:
    """The whole matrix, or a part of it."""
    for method, extra, is_tied, precision, stored in itertools.product(
        methods, extras, (True, False), precisions, STORED
    ):
        has_extra = method == "lora" or extra not in OF_LORA
        if has_extra and not (method == "full" and extra == "additional_target"):
            yield Cell(method, extra, is_tied, precision, stored)


def losses(result: Any) -> list[float]:
    """Every training and evaluation loss of a run."""
    return [
        record[name]
        for record in result.log_history
        for name in ("loss", "eval_loss")
        if name in record
    ]


def problems_of(workshop: Workshop, cell: Cell, folder: Path) -> list[str]:
    """What is not as it shall be in a cell; a folder of its own is filled."""
    found = []
    exact = workshop.expected(cell, folder / "float32")
    arguments = workshop.arguments(cell, folder / "run")
    answering = {"do_predict": True, "predict_with_generate": True}
    result = luthier.train(arguments | answering)
    told = losses(result)
    apart = max(abs(one - other) / other for one, other in zip(told, exact, strict=True))
    if cell.extra not in DRAWS and not 0 < apart <= PRECISIONS[cell.precision]:
        found.append(f"losses {told} lie {apart:.1e} from float32's {exact}")

    again = folder / "again"
    shutil.copytree(folder / "run" / "checkpoint-2", again / "checkpoint-2")
    resumed = luthier.train(arguments | {"output_dir": str(again)})
    if losses(resumed) != told:
        found.append(f"losses {losses(resumed)} after a resume, {told} without")
    found += _apart(folder / "run", again)

    reading = _reading(arguments, folder / "run", cell.method)
    read = luthier.train(reading | answering | {"output_dir": str(folder / "read")})
    if not math.isclose(read.metrics["eval_loss"], told[-1], rel_tol=PRECISIONS[cell.precision]):
        found.append(f"eval_loss {read.metrics['eval_loss']} when read back, {told[-1]} in the run")
    answers, others = (_answers(folder / name) for name in ("run", "read"))
    if len(answers) != len(others) or len(answers & others) < len(answers) / 2:
        found.append(f"answers {others} when read back, {answers} in the run")
    engine = load_engine(read_arguments([str(folder / "run")]))
    list(engine.stream([Message("user", "Count to 3.")]))
    return found


def _reading(arguments: dict[str, Any], run: Path, method: str) -> dict[str, Any]:
    """The same data and precision with what was trained, to evaluate it."""
    name = "adapter_name_or_path" if method == "lora" else "model_name_or_path"
    return {**arguments, name: str(run), "do_train": False, "do_eval": True, "eval_strategy": "no"}


def _answers(run: Path) -> set[str]:
    """The lines of all predictions; where two tokens are nearly equally likely they may differ."""
    return set((run / "generated_predictions.jsonl").read_text().splitlines())


def _apart(expected: Path, found: Path) -> Iterator[str]:
    for file in sorted(expected.glob("*.safetensors")):
        one, other = load_file(file), load_file(found / file.name)
        if one.keys() != other.keys() or not all(torch.equal(one[n], other[n]) for n in one):
            yield f"{file.name} differs after a resume"


def main() -> None:
    """Runs the cells that are asked for; the exit code says whether all are as they shall be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--extras", nargs="+", default=EXTRAS, choices=EXTRAS)
    parser.add_argument("--precisions", nargs="+", default=tuple(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    dtypes.is_emulated = lambda dtype, use_cpu: False
    num_wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        workshop = Workshop(folder).make()
        chosen = list(cells(asked.methods, asked.extras, asked.precisions))
        for number, cell in enumerate(chosen):
            begun = time.monotonic()
            place = folder / f"cell-{number}"
            shutil.rmtree(place, ignore_errors=True)
            try:
                found = problems_of(workshop, cell, place)
            except Exception:
                found = [traceback.format_exc()]
            num_wrong += bool(found)
            print(
                f"== {cell}: {'; '.join(found) or 'as it shall be'} "
                f"({time.monotonic() - begun:.1f} s)",
                flush=True,
            )
    print(f"{num_wrong} of {len(chosen)} cells are wrong")
    sys.exit(num_wrong > 0)


if __name__ == "__main__":
    main()
