"""Moonlight."""

from __future__ import annotations

from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("moonlight")(
    Template(
        "moonlight",
        user=(
            "<|im_user|>user<|im_middle|>{{content}}<|im_end|>"
            "<|im_assistant|>assistant<|im_middle|>",
        ),
        assistant=("{{content}}<|im_end|>",),
        system=("<|im_system|>system<|im_middle|>{{content}}<|im_end|>",),
        default_system="You are a helpful assistant provided by Moonshot-AI.",
        stop_words=("<|im_end|>",),
        replace_eos=True,
    )
)
