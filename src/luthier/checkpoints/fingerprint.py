"""The fingerprint of a run: the data, settings and processes that its checkpoints remember."""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from luthier import __version__
from luthier.arguments.record import Arguments, public_value
from luthier.checkpoints.manifest import Manifest

if TYPE_CHECKING:
    import datasets

    from luthier.data.stream import Stream
    from luthier.distributed.strategy import Strategy

NUM_READ = 64
"""Examples whose tokens are part of the fingerprint, from all over the data."""

PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "tokenizers", "safetensors")
"""Packages whose versions decide what a run computes."""

COUNTS = ("num_tokens", "num_units")
"""Columns that are part of it whole, so that order and number of the examples count."""


@dataclass(frozen=True)
class RunFingerprint:
    """What makes two runs the same, and what their checkpoints say beside it.

    Attributes:
        run_id: kept when a run goes on.
        settings: every argument as it was asked for, secrets masked.
        seed: of the run.
        world_size: ranks.
        strategy: how the weights are held.
        examples_per_step: of all ranks.
        data: `fingerprint` of the encoded training data, and its `rows`.
        versions: of the packages that compute.
    """

    settings: Mapping[str, Any]
    seed: int
    world_size: int
    strategy: str
    examples_per_step: int
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def manifest(
        self, step: int, max_steps: int, loss: float | None = None, end: str = ""
    ) -> Manifest:
        """What a checkpoint of this run says of itself; the files come later."""
        return Manifest(
            step=step,
            max_steps=max_steps,
            run_id=self.run_id,
            written=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            world_size=self.world_size,
            strategy=self.strategy,
            seed=self.seed,
            examples_per_step=self.examples_per_step,
            loss=loss,
            data=self.data,
            settings=self.settings,
            versions=self.versions,
            end=end,
        )


def fingerprint_run(
    asked: Arguments,
    strategy: Strategy,
    world_size: int,
    train: datasets.Dataset | Stream | None = None,
) -> RunFingerprint:
    """The fingerprint of a run that begins.

    Args:
        asked: the configuration as it was given, before it was fitted to the machine.
        strategy: how the weights are held.
        world_size: ranks.
        train: the encoded training data; None where nothing is trained.
    """
    training = asked.training
    per_rank = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return RunFingerprint(
        settings=settings_of(asked),
        seed=training.seed,
        world_size=world_size,
        strategy=strategy.name,
        examples_per_step=per_rank * world_size,
        data={} if train is None else hash_examples(train),
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


def hash_examples(train: datasets.Dataset | Stream) -> dict[str, Any]:
    """A hash of the encoded examples and their order, whatever file they came from.

    All lengths and counts of learned tokens, and the tokens of some examples from all over the
    data; of a stream, what decides about its rows.
    """
    from luthier.data.stream import Stream

    digest = hashlib.sha256()
    if isinstance(train, Stream):
        digest.update(json.dumps(train.settings, sort_keys=True).encode())
        return {"fingerprint": digest.hexdigest(), "rows": None}
    for name in COUNTS:
        column = train.select_columns([name]).with_format("arrow")[:].column(name)
        digest.update(column.combine_chunks().to_numpy(zero_copy_only=False).astype("<i8"))
    places = {at * (len(train) - 1) // max(NUM_READ - 1, 1) for at in range(NUM_READ)}
    for row in train.select(sorted(places)):
        digest.update(json.dumps([row["input_ids"], row["labels"]]).encode())
    return {"fingerprint": digest.hexdigest(), "rows": len(train)}
