"""Mistral, Ministral, Pixtral and Mistral Small: one form a generation of tokenizers."""

from __future__ import annotations

from luthier.templates.template import PLAIN

PLAIN.register(
    "mistral",
    "llava_next_mistral",
    "llava_next_video_mistral",
    user="[INST] {{content}}[/INST]",
    assistant=" {{content}}{{eos}}",
    system="{{content}}\n\n",
    function="[TOOL_CALLS] {{content}}{{eos}}",
    observation='[TOOL_RESULTS] {"content": {{content}}}[/TOOL_RESULTS]',
    prefix="{{bos}}",
    tool_format="mistral",
    is_system_in_user=True,
)
PLAIN.register(
    "ministral",
    "ministral3",
    "pixtral",
    user="[INST]{{content}}[/INST]",
    system="{{content}}\n\n",
    function="[TOOL_CALLS]{{content}}{{eos}}",
    observation='[TOOL_RESULTS]{"content": {{content}}}[/TOOL_RESULTS]',
    prefix="{{bos}}",
    tool_format="mistral",
    is_system_in_user=True,
)
PLAIN.register(
    "mistral_small",
    user="[INST]{{content}}[/INST]",
    system="[SYSTEM_PROMPT]{{content}}[/SYSTEM_PROMPT]",
    function="[TOOL_CALLS]{{content}}{{eos}}",
    observation='[TOOL_RESULTS]{"content": {{content}}}[/TOOL_RESULTS]',
    prefix="{{bos}}",
    tool_format="mistral",
)
