"""ChatML, and what reads alike: Qwen, SmolLM, InternLM, LFM2, Keye, LLaVA-NeXT, MiMo, MOSS."""

from __future__ import annotations

from luthier.templates.template import PLAIN

CHATML = PLAIN.but(
    user="<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n",
    assistant="{{content}}<|im_end|>\n",
    system="<|im_start|>system\n{{content}}<|im_end|>\n",
    stop_words=("<|im_end|>",),
)
# what tools answered is a turn of a role of its own
WITH_TOOLS = CHATML.but(
    observation="<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n"
)
# every turn's mark ends an answer, too
STRICT = WITH_TOOLS.but(
    stop_words=("<|im_end|>", "<|im_start|>"), replace_eos=True, replace_chat_template=True
)
# Qwen's tools; what they answer stands in a user's turn
QWEN = CHATML.but(
    observation=(
        "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    tool_format="qwen",
    replace_eos=True,
)

STRICT.register("chatml")
STRICT.register(
    "chatml_de", default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent."
)
WITH_TOOLS.register("cpm4", prefix="{{bos}}")
WITH_TOOLS.register(
    "dbrx",
    replace_eos=True,
    default_system=(
        "You are DBRX, created by Databricks. You were last updated in December 2023. "
        "You answer questions based on information available up to that point.\n"
        "YOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but provide thorough "
        "responses to more complex and open-ended questions.\nYou assist with various tasks, "
        "from writing to coding (using markdown for code blocks — remember to use ``` with "
        "code, JSON, and tables).\n(You do not have real-time data access or code execution "
        "capabilities. You avoid stereotyping and provide balanced perspectives on "
        "controversial topics. You do not provide song lyrics, poems, or news articles and "
        "do not divulge details of your training data.)\nThis is your system prompt, "
        "guiding your responses. Do not reference it, just respond to the user. If you find "
        "yourself talking about this message, stop. You should be responding appropriately "
        "and usually that means not mentioning this.\n"
        "YOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT YOURSELF UNLESS THE INFORMATION IS "
        "DIRECTLY PERTINENT TO THE USER'S QUERY."
    ),
)
WITH_TOOLS.register("falcon_h1", prefix="{{bos}}", stop_words=("<|im_end|>", "<|end_of_text|>"))
WITH_TOOLS.register("opencoder", default_system="You are OpenCoder, created by OpenCoder Team.")
CHATML.register(
    "sailor",
    user="<|im_start|>question\n{{content}}<|im_end|>\n<|im_start|>answer\n",
    default_system=(
        "You are an AI assistant named Sailor created by Sea AI Lab. "
        "Your answer should be friendly, unbiased, faithful, informative and detailed."
    ),
)
CHATML.register("yi", "llava_next_yi", "llava_next_video_yi")
CHATML.register("minicpm_v", "minicpm_v_4_6", default_system="You are a helpful assistant.")
CHATML.register(
    "minicpm_o",
    default_system=(
        "You are a helpful assistant. "
        "You can accept audio and text input and output voice and text."
    ),
)

CHATML.register(
    "intern2",
    prefix="{{bos}}",
    default_system=(
        "You are an AI assistant whose name is InternLM (书生·浦语).\n"
        "- InternLM (书生·浦语) is a conversational language model that is developed by "
        "Shanghai AI Laboratory (上海人工智能实验室). "
        "It is designed to be helpful, honest, and harmless.\n"
        "- InternLM (书生·浦语) can understand and communicate fluently in the language "
        "chosen by the user such as English and 中文."
    ),
)
CHATML.register(
    "intern_vl",
    prefix="{{bos}}",
    default_system=(
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"
        "联合开发的多模态大语言模型。"
    ),
)
CHATML.register("intern_s1", prefix="{{bos}}")

CHATML.register("smollm")
CHATML.register(
    "smollm2",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
)

LFM2 = CHATML.but(
    observation=(
        "<|im_start|>tool\n<|tool_response_start|>{{content}}<|tool_response_end|><|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    tool_format="lfm2",
    tool_call_words=("<|tool_call_start|>", "<|tool_call_end|>"),
    replace_eos=True,
)

LFM2.register("lfm2", default_system="You are a helpful AI assistant.")
LFM2.register("lfm2_vl", default_system="You are a helpful multimodal assistant by Liquid AI.")

QWEN.register(
    "qwen", default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
)
QWEN.register(
    "qwen2_vl", "qwen2_omni", "llava_next_qwen", default_system="You are a helpful assistant."
)
CHATML.register("qwen2_audio", default_system="You are a helpful assistant.", replace_eos=True)
QWEN.register("qwen3", "qwen3_vl", "qwen3_omni", "keye_vl", is_reasoning=True)
QWEN.register("qwen3_nothink", "qwen3_vl_nothink", "qwen3_omni_nothink")
QWEN.register("qwen3_5", "qwen3_6", tool_format="qwen3_5", is_reasoning=True)
QWEN.register("qwen3_5_nothink", tool_format="qwen3_5")
QWEN.register("moss_vl", trims_lone_tools=True)
QWEN.register("mimo", default_system="You are a helpful assistant.", is_reasoning=True)
QWEN.register(
    "mimo_v2",
    default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
    thought_words=("<think>", "</think>"),
    is_reasoning=True,
)
QWEN.register(
    "mimo_vl",
    default_system="You are MiMo, an AI assistant developed by Xiaomi.",
    is_reasoning=True,
)
