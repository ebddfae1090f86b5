"""luthier fine-tunes language models: the same configuration, the same loss curve, faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from luthier.training.run import RunResult

__version__ = "0.1.0"


def train(
    arguments: dict[str, Any], callbacks: Sequence[TrainerCallback | type[TrainerCallback]] = ()
) -> RunResult:
    """Does what the arguments ask for: trains, evaluates, predicts, as `luthier train` does.

    Args:
        arguments: the flat names and values of a configuration file.
        callbacks: heard at every event of the training loop.

    While it trains, Ctrl-C and SIGTERM ask for a checkpoint and an end; at a second one they do
    what they did before the call.

    Raises:
        Stopped: when the run was asked to stop, and did; called again, it goes on.
        LuthierError: for anything that the caller can mend; all problems at once.
    """
    from luthier.arguments.parse import parse_dict
    from luthier.training.preflight import find_problems
    from luthier.training.run import run

    return run(parse_dict(arguments, check=find_problems), callbacks=callbacks)
