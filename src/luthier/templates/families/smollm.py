"""SmolLM and SmolLM2."""

from __future__ import annotations

from luthier.templates.families.chatml import make_chatml
from luthier.templates.registry import TEMPLATES

TEMPLATES.register("smollm")(make_chatml("smollm"))
TEMPLATES.register("smollm2")(
    make_chatml(
        "smollm2",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face.",
    )
)
