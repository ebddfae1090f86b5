"""MiniMax M1 and M2."""

from __future__ import annotations

from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_BEGIN, _END = "<beginning_of_sentence>", "<end_of_sentence>"

TEMPLATES.register("minimax1")(
    Template(
        "minimax1",
        user=(f"{_BEGIN}user name=user\n{{{{content}}}}{_END}\n{_BEGIN}ai name=assistant\n",),
        assistant=(f"{{{{content}}}}{_END}\n",),
        system=(f"{_BEGIN}system ai_setting=assistant\n{{{{content}}}}{_END}\n",),
        observation=(
            f"{_BEGIN}tool name=tools\n{{{{content}}}}{_END}\n{_BEGIN}ai name=assistant\n",
        ),
        default_system="You are a helpful assistant.",
        stop_words=(_END,),
        tool_format="minimax1",
    )
)
TEMPLATES.register("minimax2")(
    Template(
        "minimax2",
        user=("]~b]user\n{{content}}[e~[\n]~b]ai\n",),
        assistant=("{{content}}[e~[\n",),
        system=("]~!b[]~b]system\n{{content}}[e~[\n",),
        observation=("]~b]tool\n<response>{{content}}</response>[e~[\n]~b]ai\n",),
        default_system=(
            "You are a helpful assistant. Your name is MiniMax-M2.1 and is built by MiniMax."
        ),
        stop_words=("[e~[",),
        tool_format="minimax2",
        is_reasoning=True,
    )
)
