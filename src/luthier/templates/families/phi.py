"""Phi-3 and Phi-4."""

from __future__ import annotations

from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("phi", "phi_small")(
    Template(
        "phi",
        user=("<|user|>\n{{content}}<|end|>\n<|assistant|>\n",),
        assistant=("{{content}}<|end|>\n",),
        system=("<|system|>\n{{content}}<|end|>\n",),
        stop_words=("<|end|>",),
        replace_eos=True,
    )
)
TEMPLATES.register("phi4")(
    Template(
        "phi4",
        user=("<|im_start|>user<|im_sep|>{{content}}<|im_end|><|im_start|>assistant<|im_sep|>",),
        assistant=("{{content}}<|im_end|>",),
        system=("<|im_start|>system<|im_sep|>{{content}}<|im_end|>",),
        stop_words=("<|im_end|>",),
        replace_eos=True,
    )
)
TEMPLATES.register("phi4_mini")(
    Template(
        "phi4_mini",
        user=("<|user|>{{content}}<|end|><|assistant|>",),
        assistant=("{{content}}<|end|>",),
        system=("<|system|>{{content}}<|end|>",),
        stop_words=("<|end|>",),
        tool_format="phi4_mini",
        replace_eos=True,
    )
)
