"""Which benchmark a model is held against, and how its questions are asked."""

from __future__ import annotations

from typing import Literal

from luthier.arguments.knob import Section, free


class EvaluatingArguments(Section):
    """Knobs of `luthier eval`; every other command says that they have no effect there."""

    task: str | None = free(None)
    """The benchmark and its part: `mmlu_test`, `ceval_validation`, `cmmlu_test` and their like, or
    tasks of lm-eval, a comma list. Required for `luthier eval`."""
    task_dir: str = free("evaluation")
    """The folder with the benchmark's files, in `mmlu`, `ceval` or `cmmlu` of it or as it is. By
    default `evaluation`."""
    lang: Literal["en", "zh"] = free("en")
    """The language of the words around the questions: `en` (the default) or `zh`."""
    n_shot: int = free(5, ge=0)
    """How many answered questions stand before each, the first ones of `dev`. By default 5."""
    reading: Literal["letter", "text"] = free("letter")
    """What of an option is weighed: the `letter` behind the question with all options (the
    default), or the `text` of each option behind the question alone."""
    save_dir: str | None = free(None)
    """Where `results.json` is written, a folder without one. By default the numbers are printed
    only."""
