"""The name under which `transformers` switches gradient checkpointing on.

5.23 renamed it and warns about the old name; 5.20, the newest release for Python 3.10, knows only
that one. Remove when Python 3.11 is the lowest that luthier admits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version
from transformers import PreTrainedModel

IS_RENAMED = Version(transformers.__version__) >= Version("5.23")


def enable_checkpointing(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Switches it on in every layer.

    Args:
        model: one that supports it.
        settings: keyword arguments of `torch.utils.checkpoint.checkpoint`.
    """
    if IS_RENAMED:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=dict(settings))
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(settings))
