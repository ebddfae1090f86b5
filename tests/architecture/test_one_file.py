"""a thing of one's own is one file, dropped into its folder, and nothing else is touched"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.house import SOURCE

OPTIMIZER = '''\
"""A toy: plain descent, written here."""
from luthier.arguments.choices import OPTIMIZERS, Optimizer


def make(groups, training):
    import torch

    class Toy(torch.optim.Optimizer):
        def step(self, closure=None):
            with torch.no_grad():
                for group in self.param_groups:
                    for each in group["params"]:
                        if each.grad is not None:
                            each.sub_(group["lr"] * each.grad)

    return Toy(groups, {"lr": training.learning_rate})


OPTIMIZERS.register("toy")(Optimizer(make, numbers=0))
'''

ADAPTER = '''\
"""A toy: norms learn, and nothing else."""
from luthier.arguments.choices import ADAPTERS, Adapter


def prepare(model, arguments, *, is_trainable, checkpoint=None):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable and "norm" in name)
    return model


ADAPTERS.register("toy")(Adapter(prepare))
'''

LACKING = '''\
"""A toy that needs what nobody has."""
from luthier.arguments.choices import OPTIMIZERS, Optimizer

OPTIMIZERS.register("lacking")(Optimizer(needs="toy_optimizers"))
'''


def drop(folder: Path, name: str, text: str) -> Path:
    """A copy of the source tree with one more file."""
    tree = folder / "src" / "luthier"
    shutil.copytree(SOURCE, tree, ignore=shutil.ignore_patterns("__pycache__"))
    assert not (tree / name).exists()
    (tree / name).write_text(text, encoding="utf-8")
    return tree.parent


def luthier(source: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(source), "XDG_CACHE_HOME": str(source / "cache")}
    command = [sys.executable, "-m", "luthier", *words]
    return subprocess.run(
        command, cwd=source.parent, env=environment, capture_output=True, text=True, check=False
    )


def write_config(folder: Path, model: Path, **changes: object) -> str:
    rows = [{"instruction": "who are you", "output": "a luthier"}] * 16
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    config = {
        "model_name_or_path": str(model),
        "dataset": str(folder / "rows.json"),
        "output_dir": str(folder / "out"),
        "do_train": True,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 0.5,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "use_cpu": True,
    }
    (folder / "run.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return str(folder / "run.json")


def losses_of_three_steps(source: Path, config: str) -> list[float]:
    done = luthier(source, "train", config, "nproc=2")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (source.parent / "out" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "choice"),
    [
        ("training/optimizers/toy.py", OPTIMIZER, {"optim": "toy"}),
        ("modeling/adapters/toy.py", ADAPTER, {"finetuning_type": "toy"}),
    ],
    ids=["optimizer", "adapter"],
)
def test_an_optimizer_or_an_adapter_trains_on_two_ranks(
    name: str, text: str, choice: dict[str, str], tmp_path: Path, llama_folder: Path
):
    source = drop(tmp_path, name, text)

    losses = losses_of_three_steps(source, write_config(tmp_path, llama_folder, **choice))

    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    argument = next(iter(choice))
    told = luthier(source, "help", "train").stdout.partition(f"--{argument} ")[2]
    assert "toy" in told.partition("\n")[0]


def test_what_an_entry_needs_is_looked_for_before_anything_is_loaded(
    tmp_path: Path, llama_folder: Path
):
    source = drop(tmp_path, "training/optimizers/lacking.py", LACKING)

    done = luthier(source, "train", write_config(tmp_path, llama_folder, optim="lacking"))

    assert done.returncode == 2
    assert "optim: lacking needs the package 'toy_optimizers'" in done.stderr
