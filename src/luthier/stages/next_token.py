"""The loss of stages that predict tokens from those before them: a sum, its unit a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.arguments.record import Arguments
from luthier.example import WEIGHT
from luthier.losses.tokens import TokenLoss
from luthier.stages.stage import Loss, Stage

if TYPE_CHECKING:
    from luthier.batching.batch import MicroBatch


class NextToken(Stage):
    """The sum of next-token losses, each times its weight; the unit is a learned token.

    A learned token is one unit whatever its weight, so the other tokens of a step learn the same
    beside it: a weight of 0.5 halves the gradient of its own tokens only. Accuracy counts tokens;
    it costs a pass over the logits, and is taken in evaluations only. A row of `losses/tokens.py`
    may stand in the place of the loss of a token.
    """

    token_loss: TokenLoss | None = None

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.label_smoothing = arguments.training.label_smoothing_factor
        self.knobs = arguments.finetuning
        self.computes_accuracy = self.knobs.compute_accuracy
        if self.computes_accuracy:
            self.eval_metrics = ("accuracy",)

    def loss(self, model: Any, batch: MicroBatch) -> Loss:
        """Runs the model on the micro-batch and sums the loss over its learned tokens."""
        from luthier.modeling.reads import read_logps, read_nll

        with_accuracy = self.computes_accuracy and not model.training
        smoothing = self.label_smoothing
        weights_N = batch.token_numbers.get(WEIGHT)
        if weights_N is None and self.token_loss is None:
            total, correct, _ = read_nll(
                model, batch, label_smoothing=smoothing, with_accuracy=with_accuracy
            )
        else:
            read = read_logps(
                model,
                batch,
                label_smoothing=smoothing,
                with_accuracy=with_accuracy,
                entropy_of=0 if self.token_loss is None else self.token_loss.entropy_of,
                against=batch.against,
            )
            losses_N = -read.logps_N
            if self.token_loss is not None:
                losses_N = self.token_loss.take(read, self.knobs)
            total = (losses_N if weights_N is None else weights_N * losses_N).sum()
            correct = None if read.correct is None else read.correct.sum()
        if correct is None:
            return Loss(total)
        return Loss(total, {"accuracy": (correct, batch.targets.numel())})
