"""Names that users bring along and that are no fields: renamed, idle, not yet here, refused."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["honoured otherwise", "accepted without effect", "not yet", "refused"]

TRUE = ("true", "yes", "on", "t", "y", "1")
FALSE = ("false", "no", "off", "f", "n", "0")
NULL = ("", "none", "null", "~")


@dataclass(frozen=True)
class Legacy:
    """What becomes of a name that is no field."""

    status: Status  # how the name is treated
    default: Any  # its value where nobody sets it; saying this value is always fine
    says: str  # what to use instead, or why nothing depends on it
    to: str = ""  # for `honoured otherwise`, our name
    value: str | None = None
    """What a switch of that status means by it; None where its own value is taken."""
    joins: bool = False  # whether that value joins the list that our name is given
    is_fixed: bool = False  # for `accepted without effect`, whether only the default is accepted
    part_of: str | None = None
    """For `not yet` and `refused`, the name that turns the feature on; without it the value changes
    nothing, and with it that name's sentence is enough."""

    def is_default(self, value: Any) -> bool:
        """Whether `value`, typed or as text, says what holds anyway."""
        if value == self.default and isinstance(value, bool) == isinstance(self.default, bool):
            return True
        text = str(value).strip().lower()
        if isinstance(self.default, bool):
            return text in (TRUE if self.default else FALSE)
        if self.default is None:
            return text in NULL or (text == "false" and not self.to)
        if isinstance(self.default, int | float):
            try:
                return float(text) == self.default
            except ValueError:
                return False
        return text == str(self.default).lower()


def _read() -> dict[str, Legacy]:
    """The table: groups of names with one fate and one sentence, each name with its default."""
    table: dict[str, Legacy] = {}
    text = Path(__file__).with_name("legacy.json").read_text(encoding="utf-8")
    for group in json.loads(text):
        names, parts = group.pop("names", {}), group.pop("parts", {})
        to, value = group.get("to"), group.get("value")
        if to is not None:
            group["says"] = f"`true` is now `{to}: {value}`." if value else f"It is now `{to}`."
        for whole, defaults in {None: names, **parts}.items():
            for name, default in defaults.items():
                assert name not in table, name
                table[name] = Legacy(default=default, part_of=whole, **group)
    return table


LEGACY = _read()
"""Every such name."""

ENVIRONMENT = {
    "USE_OPENMIND_HUB": "Models and data sets that are no folder here come from the Hugging Face "
    "hub. Fetch them from Modelers first, and name the folder.",
    "USE_RAY": "Ray takes no part: `luthier train` starts the processes of this machine.",
    "USE_V1": "There is one trainer here, and it takes the arguments of this configuration.",
    "USE_MCA": "Megatron takes no part; fsdp and deepspeed hold weights in parts.",
    "USE_MEGATRON_BRIDGE": "Megatron takes no part; fsdp and deepspeed hold weights in parts.",
    "USE_KT": "KTransformers takes no part; use finetuning_type: lora on a model that fits.",
}
"""Switches of LLaMA-Factory in the environment that have no effect -> what there is instead."""


def is_switched_on(variable: str) -> bool:
    """Whether the environment sets a switch, as LLaMA-Factory reads it."""
    return os.environ.get(variable, "").lower() in ("true", "y", "1")
