"""How many devices this machine offers to a run."""

from __future__ import annotations

import sys
from pathlib import Path

from luthier.collector import resting_collector

DEVICE_FILES = (
    "nvidia[0-9]*",
    "kfd",  # AMD
    "dxg",  # Windows' subsystem for Linux
    "dri/renderD*",  # Intel and others
    "davinci[0-9]*",  # Ascend
    "accel/accel*",  # Habana
    "mlu*",  # Cambricon
    "musa*",  # Moore Threads
)
"""What Linux shows under /dev where there is an accelerator."""


def count_accelerators() -> int:
    """The accelerators that torch sees; it is imported only where there may be some."""
    if sys.platform == "linux" and not any(
        any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES
    ):
        return 0
    with resting_collector():
        import torch
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
