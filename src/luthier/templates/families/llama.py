"""Llama 2, 3 and 4."""

from __future__ import annotations

from luthier.templates.template import PLAIN

LLAMA2 = PLAIN.but(
    user="{{bos}}[INST] {{content}} [/INST]",
    system="<<SYS>>\n{{content}}\n<</SYS>>\n\n",
    is_system_in_user=True,
)

LLAMA2.register("llama2")
LLAMA2.register("llama2_zh", default_system="You are a helpful assistant. 你是一个乐于助人的助手。")
PLAIN.register(
    "llama3",
    "mllama",
    "llava_next_llama3",
    user=(
        "<|start_header_id|>user<|end_header_id|>\n\n{{content}}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    assistant="{{content}}<|eot_id|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>",
    observation=(
        "<|start_header_id|>ipython<|end_header_id|>\n\n{{content}}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    prefix="{{bos}}",
    stop_words=("<|eot_id|>", "<|eom_id|>"),
    tool_format="llama3",
    replace_eos=True,
)
PLAIN.register(
    "llama4",
    user=(
        "<|header_start|>user<|header_end|>\n\n{{content}}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    ),
    assistant="{{content}}<|eot|>",
    system="<|header_start|>system<|header_end|>\n\n{{content}}<|eot|>",
    observation=(
        "<|header_start|>ipython<|header_end|>\n\n{{content}}<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    ),
    prefix="{{bos}}",
    stop_words=("<|eot|>", "<|eom|>"),
    tool_format="llama3",
    replace_eos=True,
)
