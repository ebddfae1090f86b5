"""templates without tokens of their own: default, empty, fewshot, alpaca, vicuna, llava."""

from __future__ import annotations

from typing import Any

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_VICUNA: dict[str, Any] = {
    "user": ("USER: {{content}} ASSISTANT:",),
    "default_system": VICUNA_SYSTEM,
}

TEMPLATES.register("default")(
    Template(
        "default",
        user=("Human: {{content}}", Special.EOS, "\nAssistant:"),
        assistant=("{{content}}", Special.EOS, "\n"),
        system=("System: {{content}}", Special.EOS, "\n"),
        replace_chat_template=True,
    )
)
TEMPLATES.register("empty")(Template("empty", assistant=("{{content}}",)))
TEMPLATES.register("fewshot")(
    Template(
        "fewshot",
        assistant=("{{content}}\n\n",),
        efficient_eos=True,
        replace_chat_template=True,
    )
)
TEMPLATES.register("alpaca")(
    Template(
        "alpaca",
        user=("### Instruction:\n{{content}}\n\n### Response:\n",),
        assistant=("{{content}}", Special.EOS, "\n\n"),
        default_system=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        ),
        replace_chat_template=True,
    )
)
TEMPLATES.register("vicuna")(Template("vicuna", **_VICUNA, replace_chat_template=True))
TEMPLATES.register("llava", "llava_next", "llava_next_video", "video_llava")(
    Template("llava", **_VICUNA)
)
