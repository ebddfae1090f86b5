"""What a loss asks of a model: logits only at the positions that predict something learned."""

# B rows, T tokens, N reads, H hidden, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn


def read_logits(
    model: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor, sources_N: Tensor
) -> Tensor:
    """The logits at some positions of a forward pass.

    The hidden states are gathered on their way into the head, so the (B, T, V) logits of prompts
    and padding never exist. All that a model does to its logits afterwards (scaling, soft-capping)
    is done by its own forward. A compiled model, and one whose head does not see all positions,
    makes all logits, of which the same rows are taken.

    Args:
        model: a causal language model, bare or wrapped for several devices.
        input_ids_BT: (B, T) int64.
        attention_mask_BT: (B, T), 1 on real tokens.
        sources_N: (N,) int64, positions in the flattened (B * T).

    Returns:
        (N, V), in the order of `sources_N`.
    """
    bare = extract_model_from_parallel(model, keep_torch_compile=True)
    is_compiled = isinstance(bare, torch._dynamo.eval_frame.OptimizedModule)
    gather = _Gather(input_ids_BT.shape, sources_N)
    head: nn.Module | None = None if is_compiled else bare.get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(gather)
    try:
        logits: Tensor = model(
            input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False
        ).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits[0] if gather.has_gathered else logits.flatten(0, 1)[sources_N]


class _Gather:
    """Puts (1, N, H) in the place of the (B, T, H) that a head is given."""

    def __init__(self, shape: torch.Size, sources_N: Tensor) -> None:
        self.shape = shape
        self.sources_N = sources_N
        self.has_gathered = False

    def __call__(self, head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not inputs or inputs[0].shape[:-1] != self.shape:
            return None
        self.has_gathered = True
        return (inputs[0].flatten(0, 1)[self.sources_N].unsqueeze(0), *inputs[1:])
