"""ERNIE."""

from __future__ import annotations

from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("ernie")(
    Template(
        "ernie",
        user=("<|im_start|>user\n{{content}}<|im_end|>\n\n<|im_start|>assistant\n",),
        assistant=("{{content}}<|im_end|>\n\n",),
        system=("<|im_start|>system\n{{content}}<|im_end|>\n\n",),
        observation=("<|im_start|>tool\n{{content}}<|im_end|>\n\n<|im_start|>assistant\n",),
        default_system="<global_setting>\nthink_mode=True\n</global_setting>",
        stop_words=("<|im_end|>",),
    )
)
TEMPLATES.register("ernie_nothink")(
    Template(
        "ernie_nothink",
        user=("User: {{content}}\nAssistant: ",),
        assistant=("{{content}}<|end_of_sentence|>",),
        system=("{{content}}\n",),
        prefix=("<|begin_of_sentence|>",),
        stop_words=("<|end_of_sentence|>",),
    )
)
TEMPLATES.register("ernie_vl")(
    Template(
        "ernie_vl",
        user=("User: {{content}}",),
        assistant=("\nAssistant: {{content}}<|end_of_sentence|>",),
        system=("{{content}}\n",),
        stop_words=("<|end_of_sentence|>",),
        is_reasoning=True,
        replace_eos=True,
        replace_chat_template=True,
    )
)
