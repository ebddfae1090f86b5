"""Qwen 2 to 3.6, and families that read as they do (Keye, LLaVA-NeXT, MiMo, MOSS)."""

from __future__ import annotations

from typing import Any

from luthier.templates.families.chatml import make_chatml
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template


def make_qwen(name: str, **changes: Any) -> Template:
    """ChatML with Qwen's tools; what they answer stands in a user's turn.

    Args:
        name: the template's.
        changes: fields of `Template` that differ.
    """
    fields: dict[str, Any] = {
        "observation": (
            "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        "tool_format": "qwen",
        "replace_eos": True,
    }
    return make_chatml(name, **(fields | changes))


TEMPLATES.register("qwen")(
    make_qwen(
        "qwen",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    )
)
TEMPLATES.register("qwen2_vl", "qwen2_omni", "llava_next_qwen")(
    make_qwen("qwen2_vl", default_system="You are a helpful assistant.")
)
TEMPLATES.register("qwen2_audio")(
    make_chatml("qwen2_audio", default_system="You are a helpful assistant.", replace_eos=True)
)
TEMPLATES.register("qwen3", "qwen3_vl", "qwen3_omni", "keye_vl")(
    make_qwen("qwen3", is_reasoning=True)
)
TEMPLATES.register("qwen3_nothink", "qwen3_vl_nothink", "qwen3_omni_nothink")(
    make_qwen("qwen3_nothink")
)
TEMPLATES.register("qwen3_5", "qwen3_6")(
    make_qwen("qwen3_5", tool_format="qwen3_5", is_reasoning=True)
)
TEMPLATES.register("qwen3_5_nothink")(make_qwen("qwen3_5_nothink", tool_format="qwen3_5"))
TEMPLATES.register("moss_vl")(make_qwen("moss_vl", trims_lone_tools=True))
TEMPLATES.register("mimo")(
    make_qwen("mimo", default_system="You are a helpful assistant.", is_reasoning=True)
)
TEMPLATES.register("mimo_v2")(
    make_qwen(
        "mimo_v2",
        default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
        thought_words=("<think>", "</think>"),
        is_reasoning=True,
    )
)
TEMPLATES.register("mimo_vl")(
    make_qwen(
        "mimo_vl",
        default_system="You are MiMo, an AI assistant developed by Xiaomi.",
        is_reasoning=True,
    )
)
