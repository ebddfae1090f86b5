"""DeepSeek's chat, coder, V3 and R1 models."""

from __future__ import annotations

from luthier.templates.template import PLAIN

V3 = PLAIN.but(user="<｜User｜>{{content}}<｜Assistant｜>", prefix="{{bos}}")

PLAIN.register(
    "deepseek", user="User: {{content}}\n\nAssistant:", system="{{content}}\n\n", prefix="{{bos}}"
)
V3.register("deepseek3")
V3.register("deepseekr1", is_reasoning=True)
PLAIN.register(
    "deepseekcoder",
    user="### Instruction:\n{{content}}\n### Response:",
    assistant="\n{{content}}\n<|EOT|>\n",
    prefix="{{bos}}",
    default_system=(
        "You are an AI programming assistant, utilizing the DeepSeek Coder model, "
        "developed by DeepSeek Company, and you only answer questions related to computer "
        "science. For politically sensitive questions, security and privacy issues, "
        "and other non-computer science questions, you will refuse to answer.\n"
    ),
)
