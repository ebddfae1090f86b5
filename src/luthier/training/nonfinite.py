"""Numbers that are not finite: found in their step, told with their rows, never saved."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier import console
from luthier.batching.batch import Step
from luthier.errors import NonFiniteError
from luthier.modeling.device import RandomState
from luthier.processes.ranks import agree_any, gather_objects, num_ranks
from luthier.training.diagnosis import (
    MOST_ROWS,
    Finding,
    Search,
    are_finite,
    describe,
    first_nonfinite,
)

MOST_SKIPPED = 3
"""Steps in a row that `on_nonfinite: skip` leaves out; the next one ends the run."""

MOST_OVERFLOWS = 25
"""Steps in a row that fp16's scaler may leave out; each halves the scale, which begins at 2**16."""

WINDOW, FEWEST = 50, 20
"""Logged losses that are looked back on, and how many there have to be."""

MADS, SHARE = 8.0, 0.3
"""How far above the median a spike is: so many deviations, and so much of the median."""

MAD_OF_NORMAL = 1.4826
"""What a median absolute deviation is multiplied by to be a normal distribution's sigma."""


class NonFiniteGuard:
    """Watches losses and gradients without waiting for the device but once a step.

    A loss that is not finite spoils its own gradient on the device, and gradients that are
    exchanged spoil those of all ranks. So the norm of the whole gradient tells every rank in the
    same step of whatever happened on any of them, and is the only thing that is looked at.

    Args:
        on_nonfinite: whether such a step ends the run, or is left out.
        has_scaler: whether fp16's scaler leaves out steps by itself, which is normal.
        name_rows: numbers of rows of the training set -> their files and lines.

    Attributes:
        num_skipped: steps left out so far.
    """

    def __init__(
        self,
        on_nonfinite: Literal["stop", "skip"],
        *,
        has_scaler: bool,
        name_rows: Callable[[Sequence[int]], list[str]],
    ) -> None:
        self.skips, self.has_scaler, self.name_rows = on_nonfinite == "skip", has_scaler, name_rows
        self.num_skipped = self._in_a_row = self._overflows = 0
        self._logged_step = 0
        self._is_window_bad = False
        self._step: Step | None = None
        self._random: RandomState | None = None
        self._losses: list[Tensor] = []
        self._spikes = SpikeWatch()

    def begin(self, step: Step, device: torch.device) -> None:
        """A step begins, or begins again; its micro-batches will be computed in this order."""
        self._step, self._losses = step, []
        self._random = RandomState.take(device)

    def watched(self, loss: Tensor, by: Iterable[Tensor] = ()) -> Tensor:
        """The loss of the next micro-batch; its gradient is NaN if it is not finite itself.

        `by` is what is looked at in place of the loss, where that is made of other ones as well.
        """
        parts = [each.detach().sum() for each in by]
        seen = torch.stack(parts).sum() if parts else loss.detach()
        self._losses.append(seen)
        return loss * (1 + 0 * seen)

    def accepts(self, norm: Tensor | float | None, step_number: int, search: Search) -> bool:
        """Whether the step may move the weights; every rank gets the same answer.

        `norm` is of the gradient of all ranks, before it was clipped.

        Raises:
            NonFiniteError: if it may not, and the run is to end.
        """
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if norm is None or math.isfinite(float(norm)):  # here the host waits for the device
            self._in_a_row = self._overflows = 0
            return True
        assert self._step is not None, "a step has begun"
        assert self._random is not None
        is_wrong = bool(self._losses) and not bool(torch.stack(self._losses).isfinite().all())
        if self.has_scaler and not agree_any(is_wrong):
            self._overflows += 1
            if self._overflows <= MOST_OVERFLOWS:
                return True  # the scaler leaves the step out, and tries a smaller scale
        found = search.find(self._step, self._losses, self._random)
        findings: list[Finding] = gather_objects(found)
        told = describe(findings, self.name_rows)
        self._in_a_row += 1
        if not self.skips or self._in_a_row > MOST_SKIPPED or any(each.weight for each in findings):
            raise self._ended(step_number, told, findings)
        self.num_skipped += 1
        self._is_window_bad = True
        console.warn(
            f"step {step_number:,} is left out (on_nonfinite: skip), {self.num_skipped:,} so far:\n"
            + told
        )
        return False

    def annotate(self, logs: dict[str, float], step_number: int) -> None:
        """Writes into a log what was left out, and says when its loss stands out.

        The mean loss since the last log becomes NaN where a step was left out.
        """
        num_steps, self._logged_step = step_number - self._logged_step, step_number
        if self._is_window_bad:
            logs["loss"] = math.nan
            self._is_window_bad = False
        if self.num_skipped:
            logs["skipped_steps"] = self.num_skipped
        usual = self._spikes.see(logs["loss"])
        if usual is not None:
            console.warn(self._spike(logs["loss"], usual, step_number, num_steps))

    def metrics(self) -> dict[str, float]:
        """What train_results.json says."""
        return {"train_skipped_steps": self.num_skipped} if self.num_skipped else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "num_skipped": self.num_skipped,
            "in_a_row": self._in_a_row,
            "logged_step": self._logged_step,
            "is_window_bad": self._is_window_bad,
            "last_losses": list(self._spikes.losses),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on behind a checkpoint."""
        self.num_skipped, self._in_a_row = state["num_skipped"], state["in_a_row"]
        self._logged_step, self._is_window_bad = state["logged_step"], state["is_window_bad"]
        self._spikes = SpikeWatch(state["last_losses"])

    def _ended(self, step_number: int, told: str, findings: Sequence[Finding]) -> NonFiniteError:
        repeated = (
            f" {MOST_SKIPPED} steps before it were left out (on_nonfinite: skip)."
            if self.skips and self._in_a_row > MOST_SKIPPED
            else ""
        )
        if any(each.weight for each in findings):
            advice = "Start again to go on from the newest checkpoint, which is checked to be good."
        elif self.has_scaler and self._overflows > MOST_OVERFLOWS:
            advice = (
                "fp16 overflows at every scale of the loss. Train in bf16, or with a lower "
                "learning_rate."
            )
        else:
            advice = (
                "Look at these rows, lower learning_rate, or leave such steps out with "
                "on_nonfinite: skip; starting again goes on from the newest checkpoint."
            )
        return NonFiniteError(
            f"step {step_number:,} gives numbers that are not finite:\n{told}\n"
            f"The step has not changed the weights, and was not saved.{repeated} {advice}"
        )

    def _spike(self, loss: float, usual: float, step_number: int, num_steps: int) -> str:
        steps = f"step {step_number:,}"
        if num_steps > 1:
            steps = f"steps {step_number - num_steps + 1:,} to {step_number:,}"
        rows = self._step.rows if self._step else ()
        named = ""
        if num_steps == 1 and 0 < len(set(rows)) <= MOST_ROWS:
            own = " of rank 0" if num_ranks() > 1 else ""
            named = f"; rows{own}: " + ", ".join(self.name_rows(list(dict.fromkeys(rows))))
        return f"the loss of {steps} is {loss:.4g}; {usual:.4g} was usual before{named}"


class SpikeWatch:
    """Compares each logged loss with the median of those before it.

    A loss is a spike when it is 8 robust standard deviations and 30 % above the median of the last
    50. Losses that fall, as they do at first, are never above it; before 20 are known nothing is
    said. When the loss stays up, only its first value is told.

    Args:
        losses: that were logged before.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self.losses: deque[float] = deque(losses, maxlen=WINDOW)
        self._is_up = False

    def see(self, loss: float) -> float | None:
        """Takes a logged loss; the median that it stands out from, None if it does not."""
        if not math.isfinite(loss):
            return None
        before = list(self.losses)
        self.losses.append(loss)
        was_up, self._is_up = self._is_up, False
        if len(before) < FEWEST:
            return None
        middle = median(before)
        deviation = MAD_OF_NORMAL * median(abs(each - middle) for each in before)
        self._is_up = loss > middle + max(MADS * deviation, SHARE * abs(middle))
        return middle if self._is_up and not was_up else None


def refuse_nonfinite(model: nn.Module, step: int) -> None:
    """Ends the run instead of saving weights that are not finite; every rank has to call it.

    Raises:
        NonFiniteError: on all ranks, when the weights of any of them are not finite.
    """
    trained = [each for each in model.parameters() if each.requires_grad]
    is_wrong = not are_finite(trained)
    if not agree_any(is_wrong):
        return
    found = first_nonfinite(model) if is_wrong else "found by another rank"
    raise NonFiniteError(
        f"after step {step:,} a trained weight is not finite: {found}. Nothing was saved of it. "
        "The newest checkpoint is the last good state: lower learning_rate, or train in bf16 "
        "instead of fp16, and start again to go on from it."
    )
