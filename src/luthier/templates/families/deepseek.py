"""DeepSeek's chat, coder, V3 and R1 models."""

from __future__ import annotations

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_V3_USER = ("<｜User｜>{{content}}<｜Assistant｜>",)

TEMPLATES.register("deepseek")(
    Template(
        "deepseek",
        user=("User: {{content}}\n\nAssistant:",),
        system=("{{content}}\n\n",),
        prefix=(Special.BOS,),
    )
)
TEMPLATES.register("deepseek3")(Template("deepseek3", user=_V3_USER, prefix=(Special.BOS,)))
TEMPLATES.register("deepseekr1")(
    Template("deepseekr1", user=_V3_USER, prefix=(Special.BOS,), is_reasoning=True)
)
TEMPLATES.register("deepseekcoder")(
    Template(
        "deepseekcoder",
        user=("### Instruction:\n{{content}}\n### Response:",),
        assistant=("\n{{content}}\n<|EOT|>\n",),
        prefix=(Special.BOS,),
        default_system=(
            "You are an AI programming assistant, utilizing the DeepSeek Coder model, "
            "developed by DeepSeek Company, and you only answer questions related to computer "
            "science. For politically sensitive questions, security and privacy issues, "
            "and other non-computer science questions, you will refuse to answer.\n"
        ),
    )
)
