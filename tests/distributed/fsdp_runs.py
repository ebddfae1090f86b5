"""what ranks do in the tests of FSDP: several short runs one after the other, and what they saw"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import luthier
from luthier.errors import LuthierError
from luthier.fused import layers
from luthier.modeling import reads

COUNTED = (
    (layers, "lora_linear"),
    (layers, "gated_mlp"),
    (layers, "rms_norm"),
    (reads, "linear_nll"),
    (FSDPModule, "set_requires_gradient_sync"),
)


@dataclass
class Told:
    """What a run has told.

    Attributes:
        losses: of each step.
        norms: of its gradient.
        metrics: at the end.
        kind: the class of the trained model.
        num_whole: weights of it that do not lie in parts.
        calls: how often each fused kernel computed, and an exchange was put off or allowed.
        error: the sentence that ended it.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    kind: str = ""
    num_whole: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    error: str = ""


def train(config: dict[str, Any]) -> Told:
    """One run."""
    told = Told()
    patches = [mock.patch.object(room, name, _counted(room, name, told)) for room, name in COUNTED]
    for patch in patches:
        patch.start()
    try:
        result = luthier.train(config)
    except LuthierError as problem:
        told.error = str(problem)
        return told
    finally:
        for patch in patches:
            patch.stop()
    told.losses = [line["loss"] for line in result.log_history if "loss" in line]
    told.norms = [line["grad_norm"] for line in result.log_history if "grad_norm" in line]
    told.metrics = dict(result.metrics)
    told.kind = type(result.model).__name__
    told.num_whole = sum(not isinstance(each, DTensor) for each in result.model.parameters())
    return told


def train_all(configs: Sequence[dict[str, Any]]) -> list[Told]:
    """Several runs in one process."""
    return [train(config) for config in configs]


def _counted(room: Any, name: str, told: Told) -> Any:
    kernel = getattr(room, name)

    def counted(*args: Any, **options: Any) -> Any:
        told.calls[name] += 1
        return kernel(*args, **options)

    return counted
