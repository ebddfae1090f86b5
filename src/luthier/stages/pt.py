"""Pre-training: every token of a text is predicted from those before."""

from __future__ import annotations

import math
from collections.abc import Mapping

from luthier.records import Text
from luthier.stages.next_token import NextToken
from luthier.stages.stage import STAGES


@STAGES.register("pt")
class PreTraining(NextToken):
    """Learns raw text, and what ends it."""

    record = Text
    derived_metrics = ("perplexity",)

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity, `exp(loss)`; infinite where that has no float."""
        try:
            return {"perplexity": math.exp(means["loss"])}
        except OverflowError:
            return {"perplexity": math.inf}
