"""Trackers of other packages: each run of ours begins one of theirs, and ends it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, SwanLabCallback

from luthier.arguments.record import facts
from luthier.arguments.training import TrainingArguments

HAS_RUN: dict[str, Callable[[Any], bool]] = {
    "mlflow": lambda mlflow: mlflow.active_run() is not None,
    "swanlab": lambda swanlab: _SwanLab(swanlab).get_run() is not None,
    "wandb": lambda wandb: wandb.run is not None,
}
"""Packages that keep one run for a process, whoever has begun it -> whether there is one."""

END: dict[str, Callable[[Any, bool], Any]] = {
    "mlflow": lambda mlflow, failed: mlflow.end_run("FAILED" if failed else "FINISHED"),
    "swanlab": lambda swanlab, failed: swanlab.finish("crashed" if failed else "success"),
    "wandb": lambda wandb, failed: wandb.finish(exit_code=int(failed)),
}
"""How it is ended; its second argument says whether ours has failed."""


@contextmanager
def own_runs(training: TrainingArguments) -> Iterator[None]:
    """Has trackers begin in this block, told what they read from the environment, and end with it.

    So the next run of the process has its own. A run of theirs that was there before is the
    caller's: it gets our numbers, and goes on.
    """
    told = {
        facts()[name].variable: str(value)
        for name, value in training
        if value is not None and facts()[name].variable
    }
    environment = {variable: os.environ.get(variable) for variable in told}
    os.environ |= told
    before, failed = _with_run(), True
    try:
        yield
        failed = False
    finally:
        for name in _with_run() - before:
            END[name](sys.modules[name], failed)
        for variable, value in environment.items():
            del os.environ[variable]
            if value is not None:
                os.environ[variable] = value


def settle_trackers(callbacks: Sequence[TrainerCallback]) -> None:
    """Lets SwanLab begin, and MLflow hear of the evaluation after training.

    MLflow's callback would end its run with training, and what comes later would be in another.
    """
    for callback in callbacks:
        if isinstance(callback, SwanLabCallback):
            callback._swanlab = _SwanLab(callback._swanlab)
        if type(callback) is MLflowCallback:
            callback.on_train_end = lambda *args, **others: None


class _SwanLab:
    """The package, whose `get_run` is None without a run, as transformers 5.23 expects.

    That of SwanLab 0.10 raises there. Remove this when transformers asks `has_run`.
    """

    def __init__(self, package: Any) -> None:
        self._package = package

    def get_run(self) -> Any:
        try:
            return self._package.get_run()
        except RuntimeError:
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._package, name)


def _with_run() -> set[str]:
    return {name for name, has in HAS_RUN.items() if name in sys.modules and has(sys.modules[name])}
