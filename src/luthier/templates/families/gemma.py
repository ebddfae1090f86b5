"""Gemma 1 to 4, and PaliGemma."""

from __future__ import annotations

from typing import Any

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_TURNS: dict[str, Any] = {
    "user": ("<start_of_turn>user\n{{content}}<end_of_turn>\n<start_of_turn>model\n",),
    "assistant": ("{{content}}<end_of_turn>\n",),
    "system": ("{{content}}\n\n",),
    "observation": ("<start_of_turn>tool\n{{content}}<end_of_turn>\n<start_of_turn>model\n",),
    "prefix": (Special.BOS,),
    "is_system_in_user": True,
}

TEMPLATES.register("gemma", "gemma3", "gemma3n")(
    Template("gemma", stop_words=("<end_of_turn>",), replace_eos=True, **_TURNS)
)
TEMPLATES.register("gemma2")(
    Template("gemma2", stop_words=("<eos>", "<end_of_turn>"), efficient_eos=True, **_TURNS)
)
TEMPLATES.register("paligemma")(
    Template("paligemma", user=("{{content}}\n",), prefix=(Special.BOS,), is_system_in_user=True)
)
TEMPLATES.register("paligemma_chat")(
    Template(
        "paligemma_chat",
        stop_words=("<end_of_turn>",),
        replace_eos=True,
        **(_TURNS | {"system": ("{{content}}",)}),
    )
)
TEMPLATES.register("gemma4", "gemma4n")(
    Template(
        "gemma4",
        user=("<|turn>user\n{{content}}<turn|>\n<|turn>model\n",),
        assistant=("{{content}}<turn|>\n",),
        system=("<|turn>system\n<|think|>{{content}}<turn|>\n",),
        function=("<|tool>{{content}}<tool|>",),
        observation=("<|turn>tool\n{{content}}<turn|>\n<|turn>model\n",),
        prefix=(Special.BOS,),
        default_system="You are a helpful assistant.",
        stop_words=("<turn|>",),
        tool_format="gemma4",
        thought_words=("<|channel>thought\n", "<channel|>"),
        is_reasoning=True,
        replace_eos=True,
    )
)
