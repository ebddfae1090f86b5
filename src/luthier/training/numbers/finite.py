"""Tensors whose numbers are all finite, and the first that has others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.errors import NonFiniteError
from luthier.processes.ranks import agree_any


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; the host waits once for each device.

    The least and the largest number of a tensor are NaN where any is, and unlike a sum they never
    overflow. Of a tensor in parts, this rank's part is looked at.
    """
    worst: dict[torch.device, list[Tensor]] = {}
    for tensor in map(own_part, tensors):
        if tensor.numel() and tensor.is_floating_point():
            ends = tensor.detach().aminmax()  # on a CPU four times faster than a norm
            worst.setdefault(tensor.device, []).extend(end.float() for end in ends)
    return all(bool(torch.stack(each).isfinite().all()) for each in worst.values())


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank: all of it, unless a strategy holds it in parts."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    # DeepSpeed's stage 3 leaves an empty tensor and hangs its part on it
    part: Tensor = getattr(tensor, "ds_tensor", tensor)
    return part


def first_nonfinite(model: nn.Module) -> str:
    """The first parameter that is not finite, and how much of it; empty if all are."""
    for name, tensor in model.named_parameters():
        part = own_part(tensor)
        if not are_finite([part]):
            wrong = ~part.detach().isfinite()
            kind = "NaN" if bool(part.detach().isnan().any()) else "infinite"
            return f"{name} ({int(wrong.sum()):,} of {part.numel():,} numbers, {kind})"
    return ""


def refuse_nonfinite(model: nn.Module, step: int) -> None:
    """Ends the run instead of saving weights that are not finite; every rank has to call it.

    Args:
        model: whose trained parameters are about to be saved.
        step: of the run, for the message.

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
