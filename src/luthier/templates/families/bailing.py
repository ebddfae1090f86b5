"""Bailing and Ling."""

from __future__ import annotations

from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("bailing")(
    Template(
        "bailing",
        user=("<role>HUMAN</role>{{content}}<role>ASSISTANT</role>",),
        system=("<role>SYSTEM</role>{{content}}",),
        observation=("<role>OBSERVATION</role>{{content}}<role>ASSISTANT</role>",),
        stop_words=("<|endoftext|>",),
        efficient_eos=True,
    )
)
TEMPLATES.register("bailing_v2")(
    Template(
        "bailing_v2",
        user=("<role>HUMAN</role>{{content}}<|role_end|><role>ASSISTANT</role>",),
        assistant=("{{content}}<|role_end|>",),
        system=("<role>SYSTEM</role>{{content}}<|role_end|>",),
        observation=(
            "<role>OBSERVATION</role>\n<tool_response>\n{{content}}\n</tool_response><|role_end|>"
            "<role>ASSISTANT</role>",
        ),
        stop_words=("<|endoftext|>",),
        tool_format="ling",
        efficient_eos=True,
    )
)
