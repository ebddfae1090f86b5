"""An input that a backward pass needs again: itself, or what a norm makes it from."""

# N rows (tokens), I inputs

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.kernels.fused_norm import NormFormula, NormOrigin
from luthier.kernels.projection import autocast_dtype


class KeptInput(NamedTuple):
    """How to get an input back from the tensors that were kept of it.

    Attributes:
        shape: as given.
        dtype: as given.
        computed_dtype: what products are made in under autocast; None without.
        formula: of the norm that made the input; None if another function did.
    """

    shape: torch.Size
    dtype: torch.dtype
    computed_dtype: torch.dtype | None
    formula: NormFormula | None

    @property
    def num_tensors(self) -> int:
        """How many tensors are kept."""
        return 1 if self.formula is None else 3

    def remake(self, tensors: Sequence[Tensor]) -> Tensor:
        """The (N, I) input in the dtype of the products."""
        if self.formula is None:
            return tensors[0]
        x_NI = NormOrigin(tensors[0], tensors[1], tensors[2], self.formula).remake()
        return x_NI if self.computed_dtype is None else x_NI.to(self.computed_dtype)

    def gradient(self, gx_NI: Tensor | None) -> Tensor | None:
        """A gradient of the products' input as one of the given input."""
        return None if gx_NI is None else gx_NI.to(self.dtype).view(self.shape)


def keep_input(
    x: Tensor, origin: NormOrigin | None
) -> tuple[KeptInput, Tensor, tuple[Tensor, ...]]:
    """What to keep of an input.

    Args:
        x: (..., I).
        origin: `norm_origin(x)`, asked before an autograd function took it over.

    Returns:
        How to get it back, the (N, I) input in the dtype of the products, the tensors to save.
    """
    dtype = autocast_dtype(x)
    x_NI = x.reshape(-1, x.shape[-1])
    x_NI = x_NI if dtype is None else x_NI.to(dtype)
    formula = None if origin is None else origin.formula
    kept = KeptInput(x.shape, x.dtype, dtype, formula)
    return kept, x_NI, (x_NI,) if origin is None else origin[:3]
