"""LFM2."""

from __future__ import annotations

from luthier.templates.families.chatml import make_chatml
from luthier.templates.registry import TEMPLATES

TEMPLATES.register("lfm2")(
    make_chatml(
        "lfm2",
        observation=(
            "<|im_start|>tool\n<|tool_response_start|>{{content}}<|tool_response_end|><|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        default_system="You are a helpful AI assistant.",
        tool_format="lfm2",
        tool_call_words=("<|tool_call_start|>", "<|tool_call_end|>"),
        replace_eos=True,
    )
)
