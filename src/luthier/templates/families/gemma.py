"""Gemma 1 to 3, as far as they read text."""

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

TEMPLATES.register("gemma")(
    Template("gemma", stop_words=("<end_of_turn>",), replace_eos=True, **_TURNS)
)
TEMPLATES.register("gemma2")(
    Template("gemma2", stop_words=("<eos>", "<end_of_turn>"), efficient_eos=True, **_TURNS)
)
TEMPLATES.register("gemma3")(
    Template("gemma3", stop_words=("<end_of_turn>",), replace_eos=True, **_TURNS)
)
