"""`luthier env`: the versions that a report of a problem needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import luthier
from luthier.errors import ArgumentsError

SUMMARY = "print versions and platform (--full asks torch about devices, which takes seconds)"
USAGE = f"luthier env [--full]\n\n{SUMMARY}"

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "pydantic",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
    "gguf",
    "liger-kernel",
)


def run(argv: list[str]) -> int:
    """Prints one fact a line."""
    wrong = [word for word in argv if word != "--full"]
    if wrong:
        raise ArgumentsError([f"env does not know {word!r}; it takes --full" for word in wrong])
    facts = {
        "luthier": luthier.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
    }
    facts |= {name: _version(name) for name in PACKAGES}
    if argv:
        facts |= _devices()
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch

    facts = {"threads of torch": str(torch.get_num_threads()), "CUDA": str(torch.version.cuda)}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"GPU {index}"] = f"{device.name}, {device.total_memory / 2**30:.1f} GiB"
    return facts
