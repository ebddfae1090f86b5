"""Answers on disk as they get done, so that a prediction that was killed goes on behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier import console
from luthier.processes.ranks import gather_objects, rank, share_fate

NUM_SAMPLED = 1024
"""Numbers of each weight that tell it from another."""


def hash_of_weights(model: torch.nn.Module) -> str:
    """A hash of names, shapes and a thousand numbers of each weight, as the model holds them."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        sampled = flat[:: max(flat.numel() // NUM_SAMPLED, 1)].cpu().contiguous()
        digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Journal:
    """The answers of one prediction, each a line; every rank writes a file of its own.

    Args:
        path: what the prediction will be called when it is whole; its journals lie beside it.
        identity: what the answers depend on, by what users call it; answers of another identity
            are left where they are, and told.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self.identity = path, dict(identity)
        said = json.dumps(self.identity, sort_keys=True)
        self._name = f"{path.stem}.{hashlib.sha256(said.encode()).hexdigest()[:12]}"
        self._file: Any = None

    def begin(self) -> dict[tuple[int, int], list[int]]:
        """What was answered before, by row and number of the answer; every rank must call it."""
        known = gather_objects(share_fate(lambda: {} if rank() else self._read()))[0]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        own = self._own(rank())
        if own.exists():  # what a kill has left of a last line goes
            whole = own.read_bytes().rpartition(b"\n")[0]
            own.write_bytes(whole + b"\n" if whole else b"")
        self._file = own.open("a", encoding="utf-8")
        if not self._file.tell():
            self._write({"identity": self.identity})
        return dict(known)

    def write(self, row: int, number: int, token_ids: Sequence[int]) -> None:
        """Writes an answer down; from now on a kill does not lose it."""
        self._write({"row": row, "number": number, "token_ids": list(token_ids)})

    def end(self) -> None:
        """Takes the journals away, when their answers stand in the prediction's own file."""
        self._file.close()
        if rank() == 0:
            for file in self._all():
                file.unlink(missing_ok=True)

    def _own(self, number: int) -> Path:
        return self.path.with_name(f"{self._name}.journal-{number}.jsonl")

    def _all(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self._name}.journal-*.jsonl"))

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()

    def _read(self) -> dict[tuple[int, int], list[int]]:
        known = {
            (line["row"], line["number"]): line["token_ids"]
            for file in self._all()
            for line in _lines(file)
            if "row" in line
        }
        if known:
            console.info(f"{len(known):,} answers were made before and are kept")
        for file in sorted(self.path.parent.glob(f"{self.path.stem}.*.journal-*.jsonl")):
            lines = _lines(file)
            if file in self._all() or not lines or file.stem.partition(".")[0] != self.path.stem:
                continue
            theirs = lines[0].get("identity", {})
            differing = [name for name in self.identity if theirs.get(name) != self.identity[name]]
            console.warn(
                f"{file} holds {len(lines) - 1:,} answers that were made with other "
                f"{' and other '.join(differing)}; they are not used, and left there"
            )
        return known


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal."""
    found: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
