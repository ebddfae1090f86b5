"""Moonlight and Kimi-VL."""

from __future__ import annotations

from typing import Any

from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_TURNS: dict[str, Any] = {
    "user": (
        "<|im_user|>user<|im_middle|>{{content}}<|im_end|><|im_assistant|>assistant<|im_middle|>",
    ),
    "assistant": ("{{content}}<|im_end|>",),
    "system": ("<|im_system|>system<|im_middle|>{{content}}<|im_end|>",),
    "stop_words": ("<|im_end|>",),
}

TEMPLATES.register("moonlight")(
    Template(
        "moonlight",
        default_system="You are a helpful assistant provided by Moonshot-AI.",
        replace_eos=True,
        **_TURNS,
    )
)
TEMPLATES.register("kimi_vl")(
    Template(
        "kimi_vl",
        default_system="You are a helpful assistant",
        thought_words=("◁think▷", "◁/think▷"),
        is_reasoning=True,
        **_TURNS,
    )
)
