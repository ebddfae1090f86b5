"""MANIFEST.json: what a checkpoint was made with, the size and hash of each of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from luthier.checkpoints.files import finite

FILE_NAME = "MANIFEST.json"

FORMAT = 1

UNSIGNED = "0" * 64
"""Stands for the manifest's own hash while that is computed."""


class DamagedManifest(ValueError):
    """A manifest is not as it was written."""


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint was made with; of a run that begins, what it is before any step."""

    step: int  # optimizer updates made
    max_steps: int  # those of the whole run, as it was asked for
    run_id: str  # the run's, kept when it goes on
    written: str  # the time, UTC
    world_size: int  # ranks
    strategy: str  # how the weights were held, see `distributed/strategy.py`
    seed: int  # of the run
    examples_per_step: int  # of all ranks together
    loss: float | None = None  # the last one logged; None before the first
    data: Mapping[str, Any] = field(default_factory=dict)
    """`fingerprint` of the encoded training data, and its `rows`."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # every argument, secrets masked
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of luthier and of the packages that compute."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """Path below the folder -> size and hash."""
    end: str = ""
    """Why the run was over, of the model at its end: `steps`, `patience` or `stopped`; empty for a
    checkpoint."""
    format: int = FORMAT  # of this file

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    def at(self, step: int, max_steps: int, loss: float | None = None, end: str = "") -> Manifest:
        """That of the same run at a step, written now; the files come later."""
        written = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return replace(
            self, step=step, max_steps=max_steps, written=written, loss=loss, end=end, files={}
        )

    def text(self) -> str:
        """The manifest as a file, with the hash of its own text in it."""
        values = finite({"digest": UNSIGNED, **asdict(self)})
        unsigned = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        digest = hashlib.sha256(unsigned.encode()).hexdigest()
        return unsigned.replace(UNSIGNED, digest, 1)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint, None without one; DamagedManifest where it was changed."""
    try:
        found = (folder / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise DamagedManifest(f"cannot be read ({problem.strerror})") from problem
    try:
        values = json.loads(found)
        digest = str(values["digest"])
    except (ValueError, KeyError, TypeError) as problem:
        raise DamagedManifest("is no JSON as it was written") from problem
    if hashlib.sha256(found.replace(digest.encode(), UNSIGNED.encode(), 1)).hexdigest() != digest:
        raise DamagedManifest("has changed since it was written")
    if values["format"] > FORMAT:
        raise DamagedManifest(
            f"is of format {values['format']}, and this luthier knows {FORMAT}: take a newer one"
        )
    known = {each.name for each in fields(Manifest)} & values.keys()
    files = {name: FileRecord(**record) for name, record in values["files"].items()}
    return Manifest(**{name: values[name] for name in known} | {"files": files})
