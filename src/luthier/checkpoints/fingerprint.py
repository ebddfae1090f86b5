"""The fingerprint of a run: the data, settings and processes that its checkpoints remember."""

from __future__ import annotations

import json
import platform
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from luthier import __version__
from luthier.arguments.record import Arguments, public_value
from luthier.checkpoints.manifest import Manifest

if TYPE_CHECKING:
    from luthier.distributed.strategy import Strategy
    from luthier.example import ExampleSet

PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "tokenizers", "safetensors")
"""Packages whose versions decide what a run computes."""


def fingerprint_run(
    asked: Arguments,
    strategy: Strategy,
    world_size: int,
    train: ExampleSet | None = None,
) -> Manifest:
    """The manifest of a run that begins: what makes it the run it is, before any step.

    `asked` is the configuration as it was given, before it was fitted to the machine; `train` the
    encoded training data, None where nothing is trained.
    """
    training = asked.training
    per_rank = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return Manifest(
        step=0,
        max_steps=0,
        run_id=uuid.uuid4().hex,
        written="",
        world_size=world_size,
        strategy=strategy.name,
        seed=training.seed,
        examples_per_step=per_rank * world_size,
        data={} if train is None else train.fingerprint(),
        settings=settings_of(asked),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """The versions of luthier, of Python and of the packages that compute."""
    found = {"luthier": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Every argument, as a manifest holds it."""
    values = {name: public_value(name, value) for name, value in arguments.flat().items()}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
