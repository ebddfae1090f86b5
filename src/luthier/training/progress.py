"""How far a run has come: what its steps have given, across logs and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from luthier.processes.ranks import gather_objects
from luthier.training.metrics import MetricSums

if TYPE_CHECKING:
    from luthier.stages.stage import Stage
    from luthier.training.step import Learned


class Progress:
    """What the steps of a run have given: since its last log, and all together."""

    def __init__(self, stage: Stage, accelerator: Any) -> None:
        self._stage, self._accelerator = stage, accelerator
        self.num_steps = self._num_all = 0  # since the last log; all, before a resume too
        self._total = 0.0
        self._remembered = MetricSums()
        self._begin()

    def _begin(self) -> None:
        self._loss = torch.zeros((), device=self._accelerator.device)
        self._metrics = MetricSums(self._stage.train_metrics)

    def add(self, learned: Learned) -> None:
        """Adds a step; every rank must call it."""
        self.num_steps, self._num_all = self.num_steps + 1, self._num_all + 1
        self._loss += learned.loss
        self._metrics.add(learned.metrics.held())
        if names := self._stage.remembers:
            of_ranks = learned.metrics.state().items()
            self._remembered.add({n: (s, c) for n, (s, c) in of_ranks if n in names})

    def remembered(self) -> dict[str, float]:
        """By name the mean of all steps so far, of what the stage remembers."""
        sums = self._remembered.held().items()
        return {name: float(total / count) for name, (total, count) in sums if count}

    def read(self) -> dict[str, float]:
        """The means since the last log, loss first; a new count begins. Every rank must call it."""
        loss = self._accelerator.gather(self._loss).mean().item()
        logs = {"loss": loss / self.num_steps}
        if self._stage.train_metrics:
            means = self._metrics.means()
            logs |= means | self._stage.derive(means)
        self._total, self.num_steps = self._total + loss, 0
        self._begin()
        return logs

    def mean_loss(self) -> float:
        """The mean of all steps; every rank must call it."""
        rest = self._accelerator.reduce(self._loss, "mean").item()
        return float((self._total + rest) / max(self._num_all, 1))

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after so many steps keeps; every rank must call it."""
        return {
            "loss_since_log": gather_objects(self._loss.item()),
            "metrics_since_log": self._metrics.state() if self._stage.train_metrics else {},
            "remembered": self._remembered.held(),
            "total_loss": self._total,
            "last_logged_step": step - self.num_steps,
        }

    def restore(self, saved: Mapping[str, Any], step: int) -> None:
        """Goes on with what a checkpoint after so many steps has kept."""
        losses, own = saved["loss_since_log"], self._accelerator.process_index
        is_as_before = len(losses) == self._accelerator.num_processes
        self._loss += losses[own] if is_as_before else math.fsum(losses) / len(losses)
        if not own:  # they are the sums of all ranks
            self._metrics.add(saved.get("metrics_since_log", {}))
        self._remembered.add(saved.get("remembered", {}))
        self._total, self._num_all = saved["total_loss"], step
        self.num_steps = step - saved["last_logged_step"]
