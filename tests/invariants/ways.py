"""ways to compute the same step of eight examples"""

from __future__ import annotations

from typing import Any

WAYS: dict[str, dict[str, Any]] = {
    "1 x 8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "8 x 1": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "each alone": {"tokens_per_micro_batch": 1},
    "all together": {"tokens_per_micro_batch": 4096},
    "unshared": {"prefix_sharing": "off"},
    "padded": {"layout": "padded"},
}
