"""The model card of an export: the run's own, as that of a model without an adapter."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from luthier.arguments.record import Arguments
from luthier.checkpoints.publish import CARD
from luthier.secrecy import masked
from luthier.training.report import use_of_scores

PLOT = "training_loss.png"


def write_card(
    place: Path, name: str, arguments: Arguments, *, scores: bool, serve: str = ""
) -> Path:
    """Writes `README.md`, from the card beside the last adapter or the weights where there is one.

    `name` is that of the folder when it is published; `scores` says that the model has a score;
    `serve` are the words that serve what stays an adapter.
    """
    base = str(arguments.model.model_name_or_path)
    adapters = arguments.model.adapter_name_or_path
    source = Path(adapters[-1] if adapters else base).expanduser()
    if (source / CARD).is_file():
        card = ModelCard.load(source / CARD, ignore_metadata_errors=True)
        text = re.sub(r"^# .*$", f"# {name}", card.text, count=1, flags=re.MULTILINE)
        if scores:
            use = use_of_scores("full")
            text = re.sub(r"^## Use\n.*?^```$", lambda _: use, text, flags=re.M | re.S)
        if (source / PLOT).is_file() and PLOT in text:
            shutil.copyfile(source / PLOT, place / PLOT)
        front = card.data
    else:
        kind = "text-classification" if scores else "text-generation"
        front = ModelCardData(pipeline_tag=kind, tags=["luthier"])
        merged = " and ".join(f"`{Path(each).name}`" for each in adapters)
        text = f"# {name}\n\n`{Path(base).name}`" + (
            f" with {merged} merged.\n" if merged else ".\n"
        )
    front.library_name = "peft" if serve else "transformers"
    if serve:
        text = f"{text.rstrip()}\n\n## With vLLM\n\n```shell\n{serve}\n```\n"
    path = place / CARD
    path.write_text(masked(f"---\n{front.to_yaml()}\n---\n{text.rstrip()}\n"), encoding="utf-8")
    return path
