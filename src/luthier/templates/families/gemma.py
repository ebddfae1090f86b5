"""Gemma 1 to 4, and PaliGemma."""

from __future__ import annotations

from luthier.templates.template import PLAIN

GEMMA = PLAIN.but(
    user="<start_of_turn>user\n{{content}}<end_of_turn>\n<start_of_turn>model\n",
    assistant="{{content}}<end_of_turn>\n",
    system="{{content}}\n\n",
    observation="<start_of_turn>tool\n{{content}}<end_of_turn>\n<start_of_turn>model\n",
    prefix="{{bos}}",
    is_system_in_user=True,
)

GEMMA.register("gemma", "gemma3", "gemma3n", stop_words=("<end_of_turn>",), replace_eos=True)
GEMMA.register("gemma2", stop_words=("<eos>", "<end_of_turn>"), efficient_eos=True)
PLAIN.register("paligemma", user="{{content}}\n", prefix="{{bos}}", is_system_in_user=True)
GEMMA.register(
    "paligemma_chat", stop_words=("<end_of_turn>",), replace_eos=True, system="{{content}}"
)
PLAIN.register(
    "gemma4",
    "gemma4n",
    user="<|turn>user\n{{content}}<turn|>\n<|turn>model\n",
    assistant="{{content}}<turn|>\n",
    system="<|turn>system\n<|think|>{{content}}<turn|>\n",
    function="<|tool>{{content}}<tool|>",
    observation="<|turn>tool\n{{content}}<turn|>\n<|turn>model\n",
    prefix="{{bos}}",
    default_system="You are a helpful assistant.",
    stop_words=("<turn|>",),
    tool_format="gemma4",
    thought_words=("<|channel>thought\n", "<channel|>"),
    is_reasoning=True,
    replace_eos=True,
)
