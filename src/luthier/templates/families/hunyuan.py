"""Hunyuan in its several forms."""

from __future__ import annotations

from luthier.templates.template import PLAIN

PLAIN.register(
    "hunyuan",
    user="{{content}}<|extra_0|>",
    assistant="{{content}}<|eos|>",
    system="{{content}}<|extra_4|>",
    prefix="<|startoftext|>",
    stop_words=("<|eos|>",),
)
PLAIN.register(
    "hunyuan_small",
    user="<｜hy_User｜>{{content}}<｜hy_place▁holder▁no▁8｜>",
    assistant="{{content}}<｜hy_place▁holder▁no▁2｜>",
    system="{{content}}<｜hy_place▁holder▁no▁3｜>",
    prefix="<｜hy_begin▁of▁sentence｜>",
    stop_words=("<｜hy_place▁holder▁no▁2｜>",),
)
PLAIN.register(
    "hy3",
    user="<｜hy_User｜>{{content}}<｜hy_Assistant｜>",
    assistant="{{content}}<｜hy_eos｜>",
    prefix="{{bos}}",
    stop_words=("<｜hy_eos｜>",),
    thought_words=("<think>", "</think>"),
    is_reasoning=True,
    replace_eos=True,
)
PLAIN.register(
    "hy_dense_1_8b",
    user="<｜hy_User｜>{{content}}",
    assistant="<｜hy_Assistant｜>{{content}}",
    system="{{content}}<｜hy_place▁holder▁no▁3｜>",
    prefix="{{bos}}",
    stop_words=("<｜hy_place▁holder▁no▁2｜>",),
    efficient_eos=True,
)
PLAIN.register(
    "hy_dense_7b",
    user="{{content}}<|extra_0|>",
    system="{{content}}<|extra_4|>",
    prefix="{{bos}}",
    stop_words=("<|eos|>",),
    efficient_eos=True,
)
