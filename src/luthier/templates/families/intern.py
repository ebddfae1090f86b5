"""InternLM 2, InternVL and Intern-S1."""

from __future__ import annotations

from luthier.records import Special
from luthier.templates.families.chatml import make_chatml
from luthier.templates.registry import TEMPLATES

TEMPLATES.register("intern2")(
    make_chatml(
        "intern2",
        prefix=(Special.BOS,),
        default_system=(
            "You are an AI assistant whose name is InternLM (书生·浦语).\n"
            "- InternLM (书生·浦语) is a conversational language model that is developed by "
            "Shanghai AI Laboratory (上海人工智能实验室). "
            "It is designed to be helpful, honest, and harmless.\n"
            "- InternLM (书生·浦语) can understand and communicate fluently in the language "
            "chosen by the user such as English and 中文."
        ),
    )
)
TEMPLATES.register("intern_vl")(
    make_chatml(
        "intern_vl",
        prefix=(Special.BOS,),
        default_system=(
            "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"
            "联合开发的多模态大语言模型。"
        ),
    )
)
TEMPLATES.register("intern_s1")(make_chatml("intern_s1", prefix=(Special.BOS,)))
