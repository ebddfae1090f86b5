"""Mistral, Ministral, Pixtral and Mistral Small: one form a generation of tokenizers."""

from __future__ import annotations

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("mistral", "llava_next_mistral", "llava_next_video_mistral")(
    Template(
        "mistral",
        user=("[INST] {{content}}[/INST]",),
        assistant=(" {{content}}", Special.EOS),
        system=("{{content}}\n\n",),
        function=("[TOOL_CALLS] {{content}}", Special.EOS),
        observation=('[TOOL_RESULTS] {"content": {{content}}}[/TOOL_RESULTS]',),
        prefix=(Special.BOS,),
        tool_format="mistral",
        is_system_in_user=True,
    )
)
TEMPLATES.register("ministral", "ministral3", "pixtral")(
    Template(
        "ministral",
        user=("[INST]{{content}}[/INST]",),
        system=("{{content}}\n\n",),
        function=("[TOOL_CALLS]{{content}}", Special.EOS),
        observation=('[TOOL_RESULTS]{"content": {{content}}}[/TOOL_RESULTS]',),
        prefix=(Special.BOS,),
        tool_format="mistral",
        is_system_in_user=True,
    )
)
TEMPLATES.register("mistral_small")(
    Template(
        "mistral_small",
        user=("[INST]{{content}}[/INST]",),
        system=("[SYSTEM_PROMPT]{{content}}[/SYSTEM_PROMPT]",),
        function=("[TOOL_CALLS]{{content}}", Special.EOS),
        observation=('[TOOL_RESULTS]{"content": {{content}}}[/TOOL_RESULTS]',),
        prefix=(Special.BOS,),
        tool_format="mistral",
    )
)
