"""Where weights, gradients and optimizer states lie: whole on every rank, or sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn
from transformers import TrainingArguments as LibraryArguments

if TYPE_CHECKING:
    from luthier.arguments.record import Arguments
    from luthier.stages.stage import Stage


StrategyName: TypeAlias = Literal["single", "ddp", "zero0", "zero1", "zero2", "zero3", "fsdp2"]

DEEPSPEED_STAGES: tuple[StrategyName, ...] = ("zero0", "zero1", "zero2", "zero3")
"""The name of each stage."""

WORDS: dict[StrategyName, str] = {
    "single": "one process",
    "ddp": "every rank holds all (DDP)",
    "zero0": "DeepSpeed, every rank holds all (ZeRO stage 0)",
    "zero1": "DeepSpeed, optimizer states in parts (ZeRO stage 1)",
    "zero2": "DeepSpeed, optimizer states and gradients in parts (ZeRO stage 2)",
    "zero3": "DeepSpeed, optimizer states, gradients and weights in parts (ZeRO stage 3)",
    "fsdp2": "FSDP2: optimizer states, gradients and weights in parts",
}

SCHEDULER = "scheduler.pt"
"""The file of a checkpoint that holds the learning rate's schedule."""

Accepts: TypeAlias = Callable[["Tensor | float | None"], bool]
"""Whether a step with this norm of its gradient may move weights; else its gradient is gone."""


class Learner(Protocol):
    """A trainer as those know it who prepare, step, evaluate and save; see `training/loop.py`."""

    arguments: Arguments
    args: LibraryArguments
    stage: Stage
    strategy: Strategy
    accelerator: Any
    model: Any  # bare, but under FSDP2
    model_wrapped: Any  # what a step of training computes
    is_prepared: bool  # whether accelerate has seen the model
    reference: Any
    """Gives the model as it was before it learned, see `modeling/reference.py`; None where the
    stage needs none, or it was read before training."""
    optimizer: Any
    lr_scheduler: Any
    processing_class: Any
    state: Any
    control: Any
    callback_handler: Any
    progress: Any  # what the steps so far have given, see `training/progress.py`

    def create_optimizer(self) -> Any:
        """Makes the optimizer of the model's learned weights."""

    def create_scheduler(self, num_training_steps: int) -> Any:
        """Makes the learning rate's schedule."""

    def is_world_process_zero(self) -> bool:
        """Whether this is the first rank."""


class Strategy:
    """How a run's processes hold what it trains; each kind has a file of its own.

    Attributes:
        name: see `WORDS`.
        shards_parameters: whether a weight is whole only while its own module's forward or backward
            runs. What reads `.weight` from outside has to gather it, or leave it alone.
        shards_states: whether every rank writes a part of a checkpoint.
        computes_alone: whether a rank may compute a micro-batch again without the others.
    """

    shards_parameters = False
    shards_states = True
    computes_alone = False

    def __init__(self, name: StrategyName) -> None:
        self.name = name

    def __str__(self) -> str:
        return WORDS[self.name]

    def begin(self, learner: Learner) -> None:
        """Settles what accelerate is to know, when there is an accelerator and a model."""

    def place(self, learner: Learner) -> Arguments:
        """Brings the model where it is looked at while whole; the arguments that follow."""
        return learner.arguments

    def prepare(self, learner: Learner, max_steps: int, checkpoint: str | None) -> None:
        """Makes optimizer and schedule, wraps the model, and reads the states of a checkpoint."""
        raise NotImplementedError

    def no_sync(self, learner: Learner, *, is_last: bool) -> AbstractContextManager[Any]:
        """Around a micro-batch: ranks exchange gradients with the last one of a step alone."""
        return nullcontext()

    def backward(self, learner: Learner, loss: Tensor, *, is_last: bool) -> None:
        """Adds the gradient of a micro-batch; `loss` is a share whose mean over ranks counts."""
        learner.accelerator.backward(loss)

    def clip(self, learner: Learner, accepts: Accepts) -> Tensor | float | None:
        """Clips the gradient of a step if it is accepted; its norm before, of all ranks."""
        raise NotImplementedError

    def evaluation_model(self, learner: Learner) -> Any:
        """The model that an evaluation computes, on its device."""
        if not learner.is_prepared:
            learner.is_prepared = True
            learner.model_wrapped = learner.accelerator.prepare_model(
                learner.model, evaluation_mode=True
            )
        return learner.model

    def result_weights(self, learner: Learner) -> Mapping[str, Tensor] | None:
        """The weights of a result, whole; None where the model holds them so."""
        return None

    def save_weights(self, learner: Learner, folder: str) -> bool:
        """Writes a checkpoint's weights in the strategy's own form; False where it has none."""
        return False

    def save_states(self, learner: Learner, folder: str) -> None:
        """Writes the states of optimizer and schedule; every rank calls it."""
        raise NotImplementedError

    def load_weights(self, learner: Learner, folder: str | Path) -> None:
        """Reads weights alone, without the optimizer's moments, at any time."""
        raise NotImplementedError

    def load_best(self, learner: Learner, folder: str) -> None:
        """Reads the weights of another checkpoint of this run, when training is over."""
        self.load_weights(learner, folder)


def learned(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [each for each in model.parameters() if each.requires_grad]
