"""How answers are generated, in prediction and in chat."""

from __future__ import annotations

from luthier.arguments.knob import Section, free


class GeneratingArguments(Section):
    """Knobs of generation."""

    do_sample: bool = free(True)
    """Whether tokens are drawn at random. By default they are; `false` takes the likeliest."""
    temperature: float = free(0.95, gt=0)
    """What the logits are divided by before drawing: lower is safer. By default 0.95."""
    top_p: float = free(0.7, gt=0.0, le=1.0)
    """Only the likeliest tokens that together have this probability are drawn from. By default
    0.7."""
    top_k: int = free(50, ge=0)
    """Only this many of the likeliest tokens are drawn from; 0 is all. By default 50."""
    num_beams: int = free(1, ge=1)
    """Beams of the search; 1 searches nothing. By default 1."""
    max_length: int = free(1024, ge=1)
    """The most tokens of prompt and answer together; counts only when `max_new_tokens` is 0. By
    default 1,024."""
    max_new_tokens: int = free(1024, ge=0)
    """The most tokens of an answer; 0 lets `max_length` decide. By default 1,024."""
    repetition_penalty: float = free(1.0, gt=0)
    """What the score of tokens already written is divided by. By default 1, nothing."""
    length_penalty: float = free(1.0)
    """Exponent of the length in a beam's score: above 1 favours long answers. By default 1."""
    num_return_sequences: int = free(1, ge=1)
    """How many answers a prediction gives to each prompt; `predict` is then a list, and scores are
    means over all. By default 1."""
    skip_special_tokens: bool = free(True)
    """Whether special tokens are left out of the decoded text. By default they are."""
