"""Packages that only some features need, asked for by the feature's name."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from luthier.errors import MissingPackage

EXTRAS = {
    "deepspeed": "deepspeed",
    "fastapi": "api",
    "llguidance": "api",
    "openai": "api",
    "uvicorn": "api",
    "gguf": "gguf",
    "lm_eval": "eval",
    "jieba": "metrics",
    "rouge_chinese": "metrics",
    "nltk": "metrics",
    "sentencepiece": "sentencepiece",
}
"""Import name -> the extra of luthier that installs it."""


def is_installed(module: str) -> bool:
    """Whether `module` (a top-level import name) can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def missing(module: str, feature: str) -> str:
    """The sentence that says which package `feature` needs and how to install it."""
    extra = EXTRAS.get(module)
    wanted = f'"luthier[{extra}]"' if extra else module.replace("_", "-")
    return f"{feature} needs the package {module!r}, which is not installed: pip install {wanted}"


def need(module: str, feature: str) -> ModuleType:
    """Imports an optional package, or says with the pip line that `feature` needs it."""
    if not is_installed(module.partition(".")[0]):
        raise MissingPackage(missing(module.partition(".")[0], feature))
    return importlib.import_module(module)
