"""Zephyr."""

from __future__ import annotations

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

TEMPLATES.register("zephyr")(
    Template(
        "zephyr",
        user=("<|user|>\n{{content}}", Special.EOS, "<|assistant|>\n"),
        system=("<|system|>\n{{content}}", Special.EOS),
        default_system="You are Zephyr, a helpful assistant.",
    )
)
