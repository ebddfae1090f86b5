"""What a form of configuration hands on: a name, a value, and where it stood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Given:
    """One setting.

    Attributes:
        origin: `config.yaml:12`, `command line`, `dict`, `train.args`.
        is_text: whether the value is text of a command line that still has to be read.
    """

    name: str
    value: Any
    origin: str
    is_text: bool = False
