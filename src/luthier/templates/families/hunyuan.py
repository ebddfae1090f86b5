"""Hunyuan in its several forms."""

from __future__ import annotations

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("hunyuan")(
    Template(
        "hunyuan",
        user=("{{content}}<|extra_0|>",),
        assistant=("{{content}}<|eos|>",),
        system=("{{content}}<|extra_4|>",),
        prefix=("<|startoftext|>",),
        stop_words=("<|eos|>",),
    )
)
TEMPLATES.register("hunyuan_small")(
    Template(
        "hunyuan_small",
        user=("<｜hy_User｜>{{content}}<｜hy_place▁holder▁no▁8｜>",),
        assistant=("{{content}}<｜hy_place▁holder▁no▁2｜>",),
        system=("{{content}}<｜hy_place▁holder▁no▁3｜>",),
        prefix=("<｜hy_begin▁of▁sentence｜>",),
        stop_words=("<｜hy_place▁holder▁no▁2｜>",),
    )
)
TEMPLATES.register("hy3")(
    Template(
        "hy3",
        user=("<｜hy_User｜>{{content}}<｜hy_Assistant｜>",),
        assistant=("{{content}}<｜hy_eos｜>",),
        prefix=(Special.BOS,),
        stop_words=("<｜hy_eos｜>",),
        thought_words=("<think>", "</think>"),
        is_reasoning=True,
        replace_eos=True,
    )
)
TEMPLATES.register("hy_dense_1_8b")(
    Template(
        "hy_dense_1_8b",
        user=("<｜hy_User｜>{{content}}",),
        assistant=("<｜hy_Assistant｜>{{content}}",),
        system=("{{content}}<｜hy_place▁holder▁no▁3｜>",),
        prefix=(Special.BOS,),
        stop_words=("<｜hy_place▁holder▁no▁2｜>",),
        efficient_eos=True,
    )
)
TEMPLATES.register("hy_dense_7b")(
    Template(
        "hy_dense_7b",
        user=("{{content}}<|extra_0|>",),
        system=("{{content}}<|extra_4|>",),
        prefix=(Special.BOS,),
        stop_words=("<|eos|>",),
        efficient_eos=True,
    )
)
