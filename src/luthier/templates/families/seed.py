"""Seed-Coder and Seed-OSS."""

from __future__ import annotations

from typing import Any

from luthier.records import Special
from luthier.templates.registry import TEMPLATES
from luthier.templates.template import Template

_TURNS: dict[str, Any] = {
    "user": (Special.BOS, "user\n{{content}}", Special.EOS, Special.BOS, "assistant\n"),
    "system": (Special.BOS, "system\n{{content}}", Special.EOS),
}

TEMPLATES.register("seed_coder")(
    Template(
        "seed_coder",
        default_system=(
            "You are an AI programming assistant, utilizing the Seed-Coder model, developed by "
            "ByteDance Seed, and you only answer questions related to computer science. For "
            "politically sensitive questions, security and privacy issues, and other non-computer "
            "science questions, you will refuse to answer.\n\n"
        ),
        **_TURNS,
    )
)
TEMPLATES.register("seed_oss")(
    Template(
        "seed_oss",
        function=(Special.BOS, "\n{{content}}", Special.EOS),
        tool_format="seed_oss",
        thought_words=("<seed:think>", "</seed:think>"),
        is_reasoning=True,
        **_TURNS,
    )
)
