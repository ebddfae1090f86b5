"""templates without tokens of their own: default, empty, fewshot, alpaca, vicuna, llava."""

from __future__ import annotations

from luthier.templates.template import PLAIN

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA = PLAIN.but(user="USER: {{content}} ASSISTANT:", default_system=VICUNA_SYSTEM)

PLAIN.register(
    "default",
    user="Human: {{content}}{{eos}}\nAssistant:",
    assistant="{{content}}{{eos}}\n",
    system="System: {{content}}{{eos}}\n",
    replace_chat_template=True,
)
PLAIN.register("empty", assistant="{{content}}")
PLAIN.register(
    "fewshot", assistant="{{content}}\n\n", efficient_eos=True, replace_chat_template=True
)
PLAIN.register(
    "alpaca",
    user="### Instruction:\n{{content}}\n\n### Response:\n",
    assistant="{{content}}{{eos}}\n\n",
    default_system=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
    ),
    replace_chat_template=True,
)
VICUNA.register("vicuna", replace_chat_template=True)
VICUNA.register("llava", "llava_next", "llava_next_video", "video_llava")
