"""LFM2 and LFM2-VL."""

from __future__ import annotations

from typing import Any

from luthier.templates.families.chatml import make_chatml
from luthier.templates.registry import TEMPLATES

_LFM2: dict[str, Any] = {
    "observation": (
        "<|im_start|>tool\n<|tool_response_start|>{{content}}<|tool_response_end|><|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "tool_format": "lfm2",
    "tool_call_words": ("<|tool_call_start|>", "<|tool_call_end|>"),
    "replace_eos": True,
}

TEMPLATES.register("lfm2")(
    make_chatml("lfm2", default_system="You are a helpful AI assistant.", **_LFM2)
)
TEMPLATES.register("lfm2_vl")(
    make_chatml(
        "lfm2_vl", default_system="You are a helpful multimodal assistant by Liquid AI.", **_LFM2
    )
)
