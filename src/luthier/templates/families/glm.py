"""ChatGLM 3, GLM-4, GLM-Z1, their sighted kin, and families that read as GLM-4.7 does (Aeva)."""

from __future__ import annotations

from typing import Any

from luthier.records import Token
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_GLM4: dict[str, Any] = {
    "user": ("<|user|>\n{{content}}<|assistant|>",),
    "assistant": ("\n{{content}}",),
    "system": ("<|system|>\n{{content}}",),
    "function": ("{{content}}",),
    "observation": ("<|observation|>\n{{content}}<|assistant|>",),
    "prefix": ("[gMASK]<sop>",),
    "stop_words": ("<|user|>", "<|observation|>"),
    "efficient_eos": True,
}
_GLM4_7: dict[str, Any] = _GLM4 | {
    "tool_format": "glm4_moe",
    "thought_words": ("<think>", "</think>"),
    "empty_thought": "</think>",
    "is_reasoning": True,
}
_WITH_ANSWER_TAGS: dict[str, Any] = _GLM4 | {
    "stop_words": (*_GLM4["stop_words"], "</answer>"),
}

TEMPLATES.register("chatglm3")(
    Template(
        "chatglm3",
        user=(Token("<|user|>"), "\n", "{{content}}", Token("<|assistant|>")),
        assistant=("\n", "{{content}}"),
        system=(Token("<|system|>"), "\n", "{{content}}"),
        function=("{{content}}",),
        observation=(Token("<|observation|>"), "\n", "{{content}}", Token("<|assistant|>")),
        prefix=(Token("[gMASK]"), Token("sop")),
        stop_words=("<|user|>", "<|observation|>"),
        tool_format="glm4",
        efficient_eos=True,
    )
)
TEMPLATES.register("glm4", "glm_ocr")(Template("glm4", tool_format="glm4", **_GLM4))
TEMPLATES.register("glmz1")(Template("glmz1", tool_format="glm4", is_reasoning=True, **_GLM4))
TEMPLATES.register("glm4_moe")(
    Template("glm4_moe", tool_format="glm4_moe", is_reasoning=True, **_GLM4)
)
TEMPLATES.register("glm4v")(
    Template("glm4v", tool_format="glm4", is_reasoning=True, **_WITH_ANSWER_TAGS)
)
TEMPLATES.register("glm4_5v")(
    Template("glm4_5v", tool_format="glm4_moe", is_reasoning=True, **_WITH_ANSWER_TAGS)
)
TEMPLATES.register("glm4_7")(Template("glm4_7", **_GLM4_7))
TEMPLATES.register("aeva")(
    Template(
        "aeva",
        default_system=(
            "You are an AI assistant named Aeva created by Zongzhi Lou. "
            "Your answer should be friendly, unbiased, faithful, informative and detailed."
        ),
        **_GLM4_7,
    )
)
