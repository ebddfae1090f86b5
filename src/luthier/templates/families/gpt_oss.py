"""gpt-oss: thoughts stand in a channel of their own."""

from __future__ import annotations

from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("gpt_oss")(
    Template(
        "gpt_oss",
        user=("<|start|>user<|message|>{{content}}<|end|><|start|>assistant",),
        assistant=("{{content}}",),
        system=("<|start|>system<|message|>{{content}}<|end|>",),
        default_system="You are ChatGPT, a large language model trained by OpenAI.",
        thought_words=(
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        plain_opening="<|channel|>final<|message|>",
        turn_end="<|end|>",
        is_reasoning=True,
        efficient_eos=True,
    )
)
