"""Granite 3 and 4."""

from __future__ import annotations

from typing import Any

from luthier.templates.families.plain import VICUNA_SYSTEM
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_TURNS: dict[str, Any] = {
    "user": (
        "<|start_of_role|>user<|end_of_role|>{{content}}<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
    ),
    "assistant": ("{{content}}<|end_of_text|>\n",),
    "system": ("<|start_of_role|>system<|end_of_role|>{{content}}<|end_of_text|>\n",),
}

TEMPLATES.register("granite3")(Template("granite3", **_TURNS))
TEMPLATES.register("granite4")(
    Template(
        "granite4",
        observation=(
            "<|start_of_role|>tool<|end_of_role|>{{content}}<|end_of_text|>\n"
            "<|start_of_role|>assistant\n",
        ),
        default_system="You are Granite, developed by IBM. You are a helpful AI assistant.",
        stop_words=("<|end_of_text|>",),
        **_TURNS,
    )
)
TEMPLATES.register("granite3_vision")(
    Template(
        "granite3_vision",
        user=("<|user|>\n{{content}}\n<|assistant|>\n",),
        system=("<|system|>\n{{content}}\n",),
        default_system=VICUNA_SYSTEM,
    )
)
