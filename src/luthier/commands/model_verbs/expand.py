"""`luthier model expand`: more layers that change nothing yet (LLaMA Pro, Wu et al. 2024)."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

from luthier.errors import ArgumentsError, MissingArguments

SUMMARY = (
    "add layers that change nothing yet: luthier model expand MODEL --blocks N --output FOLDER"
)

USAGE = """\
usage: luthier model expand MODEL --blocks N --output FOLDER

Copies a model with N more layers, spread evenly: behind each group of layers a copy of its last one
whose o_proj and down_proj are zero, so that it passes on what it reads. The new model's logits
equal the old one's bit for bit, which is looked at before FOLDER gets its name.

MODEL is a folder with *.safetensors, or a name on the hub.

  --blocks N       layers to add; the number of layers has to be a multiple of it
  --output FOLDER  where it is written: a folder that is not there, or empty

Train the new layers alone (they are found by their places):
  use_llama_pro: true, freeze_trainable_layers: N, finetuning_type: freeze (or lora, oft)"""


def run(argv: list[str]) -> int:
    """Expands the model that the words name."""
    if not argv:
        raise MissingArguments([f"luthier model expand needs a model.\n{USAGE}"])
    asked = _Parser(add_help=False, allow_abbrev=False)
    asked.add_argument("model")
    asked.add_argument("--blocks", type=int)
    asked.add_argument("--output", type=Path)
    words = asked.parse_intermixed_args(argv)
    missing = [f"--{name}" for name in ("blocks", "output") if getattr(words, name) is None]
    if missing:
        raise ArgumentsError([f"luthier model expand: {' and '.join(missing)} missing.\n{USAGE}"])

    from luthier.exporting.expand import expand

    print(expand(words.model, words.blocks, words.output))
    return 0


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentsError([f"luthier model expand: {message}\n{USAGE}"])
