"""ChatGLM 3, GLM-4, GLM-Z1, their sighted kin, and families that read as GLM-4.7 does (Aeva)."""

from __future__ import annotations

from luthier.records import Token
from luthier.templates.template import PLAIN

GLM4 = PLAIN.but(
    user="<|user|>\n{{content}}<|assistant|>",
    assistant="\n{{content}}",
    system="<|system|>\n{{content}}",
    function="{{content}}",
    observation="<|observation|>\n{{content}}<|assistant|>",
    prefix="[gMASK]<sop>",
    stop_words=("<|user|>", "<|observation|>"),
    efficient_eos=True,
)
GLM4_7 = GLM4.but(
    tool_format="glm4_moe",
    thought_words=("<think>", "</think>"),
    empty_thought="</think>",
    is_reasoning=True,
)
GLM4V = GLM4.but(stop_words=("<|user|>", "<|observation|>", "</answer>"), is_reasoning=True)

PLAIN.register(
    "chatglm3",
    user=(Token("<|user|>"), "\n", "{{content}}", Token("<|assistant|>")),
    assistant=("\n", "{{content}}"),
    system=(Token("<|system|>"), "\n", "{{content}}"),
    function="{{content}}",
    observation=(Token("<|observation|>"), "\n", "{{content}}", Token("<|assistant|>")),
    prefix=(Token("[gMASK]"), Token("sop")),
    stop_words=("<|user|>", "<|observation|>"),
    tool_format="glm4",
    efficient_eos=True,
)
GLM4.register("glm4", "glm_ocr", tool_format="glm4")
GLM4.register("glmz1", tool_format="glm4", is_reasoning=True)
GLM4.register("glm4_moe", tool_format="glm4_moe", is_reasoning=True)
GLM4V.register("glm4v", tool_format="glm4")
GLM4V.register("glm4_5v", tool_format="glm4_moe")
GLM4_7.register("glm4_7")
GLM4_7.register(
    "aeva",
    default_system=(
        "You are an AI assistant named Aeva created by Zongzhi Lou. "
        "Your answer should be friendly, unbiased, faithful, informative and detailed."
    ),
)
