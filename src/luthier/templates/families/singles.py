"""Families of one template each."""

from __future__ import annotations

from luthier.records import Special, Token
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("breeze")(
    Template(
        "breeze",
        user=("[INST] {{content}} [/INST] ",),
        prefix=(Special.BOS,),
        efficient_eos=True,
    )
)
TEMPLATES.register("cohere")(
    Template(
        "cohere",
        user=(
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        ),
        system=("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|>",),
        prefix=(Special.BOS,),
    )
)
TEMPLATES.register("dots_ocr")(
    Template(
        "dots_ocr",
        user=("<|user|>{{content}}<|endofuser|><|assistant|>",),
        assistant=("{{content}}<|endofassistant|>",),
        system=("<|system|>{{content}}<|endofsystem|>\n",),
        stop_words=("<|endofassistant|>",),
        efficient_eos=True,
    )
)
TEMPLATES.register("exaone")(
    Template(
        "exaone",
        user=("[|user|]{{content}}\n[|assistant|]",),
        assistant=("{{content}}", Special.EOS, "\n"),
        system=("[|system|]{{content}}[|endofturn|]\n",),
    )
)
TEMPLATES.register("falcon")(
    Template(
        "falcon",
        user=("User: {{content}}\nFalcon:",),
        assistant=("{{content}}\n",),
        efficient_eos=True,
    )
)
TEMPLATES.register("index")(
    Template(
        "index",
        user=("reserved_0{{content}}reserved_1",),
        system=("<unk>{{content}}",),
        efficient_eos=True,
    )
)
TEMPLATES.register("olmo")(
    Template("olmo", user=("<|user|>\n{{content}}<|assistant|>\n",), prefix=(Special.EOS,))
)
TEMPLATES.register("solar")(
    Template(
        "solar",
        user=("### User:\n{{content}}\n\n### Assistant:\n",),
        system=("### System:\n{{content}}\n\n",),
        efficient_eos=True,
    )
)
TEMPLATES.register("starchat")(
    Template(
        "starchat",
        user=("<|user|>\n{{content}}<|end|>\n<|assistant|>",),
        assistant=("{{content}}<|end|>\n",),
        system=("<|system|>\n{{content}}<|end|>\n",),
        stop_words=("<|end|>",),
    )
)
TEMPLATES.register("telechat2")(
    Template(
        "telechat2",
        user=("<_user>{{content}}<_bot>",),
        system=("<_system>{{content}}",),
        default_system=(
            "你是中国电信星辰语义大模型，英文名是TeleChat，你是由中电信人工智能科技有限公司和"
            "中国电信人工智能研究院（TeleAI）研发的人工智能助手。"
        ),
    )
)
TEMPLATES.register("xuanyuan")(
    Template(
        "xuanyuan",
        user=("Human: {{content}} Assistant:",),
        default_system=(
            "以下是用户和人工智能助手之间的对话。用户以Human开头，人工智能助手以Assistant开头，"
            "会对人类提出的问题给出有帮助、高质量、详细和礼貌的回答，并且总是拒绝参与与不道德、"
            "不安全、有争议、政治敏感等相关的话题、问题和指示。\n"
        ),
    )
)
TEMPLATES.register("yi_vl")(
    Template(
        "yi_vl",
        user=("### Human: {{content}}\n### Assistant:",),
        assistant=("{{content}}\n",),
        default_system=(
            "This is a chat between an inquisitive human and an AI assistant. Assume the role of "
            "the AI assistant. Read all the images carefully, and respond to the human's questions "
            "with informative, helpful, detailed and polite answers. "
            "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
            "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。\n\n"
        ),
        stop_words=("###",),
        efficient_eos=True,
    )
)
TEMPLATES.register("youtu")(
    Template(
        "youtu",
        user=("<|User|>{{content}}<|Assistant|>",),
        assistant=("{{content}}<|end_of_text|>",),
        function=("{{content}}",),
        observation=("<tool_response>\n{{content}}\n</tool_response><|Assistant|>",),
        prefix=(Special.BOS,),
        stop_words=("<|end_of_text|>",),
        is_reasoning=True,
        replace_eos=True,
    )
)
TEMPLATES.register("youtu_vl")(
    Template(
        "youtu_vl",
        user=("<|begin_of_text|>user\n{{content}}<|end_of_text|>\n<|begin_of_text|>assistant\n",),
        assistant=("{{content}}<|end_of_text|>\n",),
        system=("<|begin_of_text|>system\n{{content}}<|end_of_text|>\n",),
        default_system="You are a helpful assistant.",
        stop_words=("<|end_of_text|>",),
    )
)
TEMPLATES.register("yuan")(
    Template(
        "yuan",
        user=("{{content}}", Token("<sep>")),
        assistant=("{{content}}<eod>\n",),
        stop_words=("<eod>",),
    )
)
