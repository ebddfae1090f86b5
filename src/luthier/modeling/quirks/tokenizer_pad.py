"""Tokenizers from a model's own code whose `_pad` is older than the library that calls it.

`transformers` 4.45 began to hand `padding_side` to `_pad`; code that was written before (ChatGLM's)
takes no such argument and fails on the first batch. No class of `transformers` 5.23 itself is
concerned, so only remote code can need this. Remove when `trust_remote_code` tokenizers are gone.
"""

from __future__ import annotations

import inspect
from types import MethodType

from transformers import PreTrainedTokenizerBase


def mend_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives a tokenizer the library's own `_pad` where its class has an outdated one."""
    parameters = inspect.signature(tokenizer._pad).parameters
    takes_anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "padding_side" not in parameters and not takes_anything:
        tokenizer._pad = MethodType(PreTrainedTokenizerBase._pad, tokenizer)
