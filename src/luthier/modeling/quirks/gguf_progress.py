"""The bar that shows how a GGUF file is read, on terminals only.

transformers 5.23 draws it into logs, too, a line for each tensor. Remove when it asks
`transformers.utils.logging` whether bars are wanted, as it does for other files.
"""

from __future__ import annotations

from functools import partial

from transformers import modeling_gguf_pytorch_utils


def draw_on_terminals_only() -> None:
    """Takes the bar off what is no terminal; calling it again changes nothing."""
    bar = modeling_gguf_pytorch_utils.tqdm
    if not isinstance(bar, partial):
        modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=None)
