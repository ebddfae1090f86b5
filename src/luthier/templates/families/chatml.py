"""ChatML, and the families that read the same turns with another system text or stop word."""

from __future__ import annotations

from typing import Any

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template


def make_chatml(name: str, **changes: Any) -> Template:
    """ChatML's turns under another name.

    Args:
        name: the template's.
        changes: fields of `Template` that differ.
    """
    fields: dict[str, Any] = {
        "user": ("<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n",),
        "assistant": ("{{content}}<|im_end|>\n",),
        "system": ("<|im_start|>system\n{{content}}<|im_end|>\n",),
        "stop_words": ("<|im_end|>",),
    }
    return Template(name, **(fields | changes))


TOOL_TURN = ("<|im_start|>tool\n{{content}}<|im_end|>\n<|im_start|>assistant\n",)
"""What tools answered, as a turn of a role of its own."""

_BOTH_ENDS: dict[str, Any] = {
    "observation": TOOL_TURN,
    "stop_words": ("<|im_end|>", "<|im_start|>"),
    "replace_eos": True,
    "replace_chat_template": True,
}

TEMPLATES.register("chatml")(make_chatml("chatml", **_BOTH_ENDS))
TEMPLATES.register("chatml_de")(
    make_chatml(
        "chatml_de",
        default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent.",
        **_BOTH_ENDS,
    )
)
TEMPLATES.register("cpm4")(
    make_chatml("cpm4", observation=TOOL_TURN, prefix=(Special.BOS,)),
)
TEMPLATES.register("dbrx")(
    make_chatml(
        "dbrx",
        observation=TOOL_TURN,
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
)
TEMPLATES.register("falcon_h1")(
    make_chatml(
        "falcon_h1",
        observation=TOOL_TURN,
        prefix=(Special.BOS,),
        stop_words=("<|im_end|>", "<|end_of_text|>"),
    )
)
TEMPLATES.register("opencoder")(
    make_chatml(
        "opencoder",
        observation=TOOL_TURN,
        default_system="You are OpenCoder, created by OpenCoder Team.",
    )
)
TEMPLATES.register("sailor")(
    make_chatml(
        "sailor",
        user=("<|im_start|>question\n{{content}}<|im_end|>\n<|im_start|>answer\n",),
        default_system=(
            "You are an AI assistant named Sailor created by Sea AI Lab. "
            "Your answer should be friendly, unbiased, faithful, informative and detailed."
        ),
    )
)
TEMPLATES.register("yi", "llava_next_yi", "llava_next_video_yi")(make_chatml("yi"))
TEMPLATES.register("minicpm_v", "minicpm_v_4_6")(
    make_chatml("minicpm_v", default_system="You are a helpful assistant.")
)
TEMPLATES.register("minicpm_o")(
    make_chatml(
        "minicpm_o",
        default_system=(
            "You are a helpful assistant. "
            "You can accept audio and text input and output voice and text."
        ),
    )
)
