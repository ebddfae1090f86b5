"""Llama 2, 3 and 4."""

from __future__ import annotations

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_LLAMA2_USER = (Special.BOS, "[INST] {{content}} [/INST]")
_LLAMA2_SYSTEM = ("<<SYS>>\n{{content}}\n<</SYS>>\n\n",)

TEMPLATES.register("llama2")(
    Template("llama2", user=_LLAMA2_USER, system=_LLAMA2_SYSTEM, is_system_in_user=True)
)
TEMPLATES.register("llama2_zh")(
    Template(
        "llama2_zh",
        user=_LLAMA2_USER,
        system=_LLAMA2_SYSTEM,
        default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
        is_system_in_user=True,
    )
)
TEMPLATES.register("llama3", "mllama", "llava_next_llama3")(
    Template(
        "llama3",
        user=(
            "<|start_header_id|>user<|end_header_id|>\n\n{{content}}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        assistant=("{{content}}<|eot_id|>",),
        system=("<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>",),
        observation=(
            "<|start_header_id|>ipython<|end_header_id|>\n\n{{content}}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        prefix=(Special.BOS,),
        stop_words=("<|eot_id|>", "<|eom_id|>"),
        tool_format="llama3",
        replace_eos=True,
    )
)
TEMPLATES.register("llama4")(
    Template(
        "llama4",
        user=(
            "<|header_start|>user<|header_end|>\n\n{{content}}<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\n",
        ),
        assistant=("{{content}}<|eot|>",),
        system=("<|header_start|>system<|header_end|>\n\n{{content}}<|eot|>",),
        observation=(
            "<|header_start|>ipython<|header_end|>\n\n{{content}}<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\n",
        ),
        prefix=(Special.BOS,),
        stop_words=("<|eot|>", "<|eom|>"),
        tool_format="llama3",
        replace_eos=True,
    )
)
