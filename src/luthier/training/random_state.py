"""The random numbers of a step, so that it can be computed again with the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Where torch's generators stood that a forward pass draws from.

    Attributes:
        cpu: state of the CPU's generator.
        own: state of the device's generator; None on a CPU.
        device: of the model.
    """

    cpu: Tensor
    own: Tensor | None
    device: torch.device

    @classmethod
    def take(cls, device: torch.device) -> RandomState:
        """The state now; it lies on the host, so nothing waits for the device."""
        is_cpu = device.type == "cpu"
        own = None if is_cpu else torch.get_device_module(device).get_rng_state(device)
        return cls(torch.get_rng_state(), own, device)

    def restore(self) -> None:
        """Has the generators go on from here."""
        torch.set_rng_state(self.cpu)
        if self.own is not None:
            torch.get_device_module(self.device).set_rng_state(self.own, self.device)
