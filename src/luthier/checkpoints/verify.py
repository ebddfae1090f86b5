"""Whether a checkpoint is as it was written, and which one is the newest that is."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.checkpoints.files import files_below, list_checkpoints
from luthier.checkpoints.manifest import (
    FILE_NAME,
    DamagedManifest,
    FileRecord,
    Manifest,
    read_manifest,
)

STATE = "trainer_state.json"

HAS_MANIFEST = "has_manifest"
"""In the trainer's own entry of trainer_state.json: that a manifest belongs to the folder."""

STATE_ENTRY = "LuthierTrainer"
"""Where trainer_state.json keeps, among the callbacks' states, what the library forgets."""

WEIGHTS = (
    "adapter_model.safetensors",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
)

INDEX = "model.safetensors.index.json"

CHUNK = 1 << 20

NUM_THREADS = min(4, os.cpu_count() or 1)
"""That hash at once; Python lets go of its lock for it."""


@dataclass(frozen=True)
class Problem:
    """Why a checkpoint is not taken."""

    file: str  # its path below the checkpoint
    reason: str  # what was found, and what was expected

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


def verify(folder: Path, *, is_read: bool = True) -> list[Problem]:
    """Everything that is wrong with a checkpoint, or with a run's folder and the model at its end.

    Each file must have the size and, with `is_read`, the hash of the manifest. A checkpoint of
    another program has none: then its state, weights, optimizer and random numbers must be there
    and look whole.
    """
    if not folder.is_dir():
        return [Problem(".", "is no folder")]
    try:
        manifest = read_manifest(folder)
    except DamagedManifest as problem:
        return [Problem(FILE_NAME, str(problem))]
    if manifest is not None:
        return _compare(folder, manifest, is_read=is_read)
    return list(_look_whole(folder))


def newest_valid(output_dir: Path) -> Path | None:
    """The checkpoint with the largest step that is as it was written; None when there is none."""
    for folder in reversed(list_checkpoints(output_dir)):
        if not verify_once(folder):
            return folder
    return None


_verified: dict[Path, list[tuple[str, int, int, int]]] = {}


def verify_once(folder: Path) -> list[Problem]:
    """As `verify`; files that this process has found good and that nobody touched stay good."""
    place = folder.resolve()
    stamp = _stamp(place)
    if _verified.get(place) == stamp:
        return []
    problems = verify(place)
    if not problems:
        _verified[place] = stamp
    return problems


def hash_file(path: Path, *, is_synced: bool = False) -> FileRecord:
    """Size and sha256 of a file, which is on disk afterwards if asked."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
        if is_synced:
            os.fsync(file.fileno())
    return FileRecord(size, digest.hexdigest())


def _stamp(folder: Path) -> list[tuple[str, int, int, int]]:
    found = [(path, path.stat()) for path in files_below(folder)]
    return [(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in found]


def _compare(folder: Path, manifest: Manifest, *, is_read: bool) -> list[Problem]:
    problems: list[Problem] = []
    to_hash: list[str] = []
    for name, expected in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            problems.append(Problem(name, "is missing"))
            continue
        if size == expected.size:
            to_hash.append(name)
        else:
            problems.append(
                Problem(name, f"has {size:,} bytes, and {expected.size:,} were written")
            )
    if not is_read:
        return problems
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(lambda name: _changed(folder / name, manifest.files[name]), to_hash)
        problems += [
            Problem(name, reason) for name, reason in zip(to_hash, found, strict=True) if reason
        ]
    return problems


def _changed(path: Path, expected: FileRecord) -> str | None:
    try:
        is_same = hash_file(path).sha256 == expected.sha256
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"
    return None if is_same else "has changed since it was written"


def _look_whole(folder: Path) -> Iterator[Problem]:
    try:
        state = json.loads((folder / STATE).read_bytes())
        state["global_step"] + 0
    except FileNotFoundError:
        yield Problem(STATE, "is missing")
        return
    except (OSError, ValueError, KeyError, TypeError):
        yield Problem(STATE, "is no JSON of a trainer's state")
        return
    if saved_entry_of(state).get(HAS_MANIFEST):
        yield Problem(FILE_NAME, "is missing")
        return
    is_sharded = any(path.is_dir() for path in folder.iterdir())  # DeepSpeed, FSDP
    names = [name for name in WEIGHTS if (folder / name).is_file()]
    if (folder / INDEX).is_file():
        try:
            names += sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            yield Problem(INDEX, "is no index of weights")
            names += [INDEX]
    if not names and not is_sharded:
        yield Problem(WEIGHTS[1], f"is missing, and so are {WEIGHTS[0]} and {INDEX}")
    for name in names:
        path = folder / name
        if not path.is_file():
            yield Problem(name, "is missing")
        elif path.suffix == ".safetensors" and not _is_whole_safetensors(path):
            yield Problem(name, "is damaged")
    random_states = list(folder.glob("rng_state*.pth"))
    if random_states and not is_sharded:  # else only weights were asked for
        for name, other in (("optimizer.pt", "optimizer.bin"), ("scheduler.pt", "scheduler.pt")):
            if not ((folder / name).is_file() or (folder / other).is_file()):
                yield Problem(name, "is missing")
    if (folder / "optimizer.pt").is_file() and not random_states:
        yield Problem("rng_state.pth", "is missing")
    for path in [*folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("*.bin")]:
        if not _is_whole_archive(path):
            yield Problem(path.name, "is damaged")


def _is_whole_safetensors(path: Path) -> bool:
    """Whether the header reads and the file ends where its last tensor does."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [each["data_offsets"][1] for name, each in header.items() if name[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return 8 + length + max(ends, default=0) == size


def _is_whole_archive(path: Path) -> bool:
    """Whether each member of what torch.save wrote has its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def saved_entry_of(state: dict[str, Any]) -> dict[str, Any]:
    """What our trainer keeps in a trainer_state.json; empty where another program wrote it."""
    entry: dict[str, Any] = (state.get("stateful_callbacks") or {}).get(STATE_ENTRY, {})
    attributes: dict[str, Any] = entry.get("attributes", {})
    return attributes
