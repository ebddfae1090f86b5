"""checkpoint folders as a run leaves them, without a run"""

from __future__ import annotations

import json
from pathlib import Path

from luthier.arguments.parse import parse_dict
from luthier.arguments.record import Arguments
from luthier.checkpoints.manifest import Manifest
from luthier.checkpoints.publish import publish
from luthier.checkpoints.verify import HAS_MANIFEST, STATE_ENTRY

FILES = {
    "adapter_model.safetensors": b"weights" * 300,
    "optimizer.pt": b"moments" * 500,
    "global_step3/deep/part.pt": b"shard" * 100,
    "rng_state.pth": b"dice" * 50,
}


def arguments(folder: Path, **values: object) -> Arguments:
    """Those of a run that trains into a folder."""
    given = {
        "model_name_or_path": "model",
        "dataset": "data",
        "template": "chatml",
        "do_train": True,
        "output_dir": str(folder),
    }
    return parse_dict(given | values)


def manifest(step: int, **values: object) -> Manifest:
    """A manifest of a small run."""
    settings: dict[str, object] = {
        "max_steps": 10,
        "run_id": "a1b2c3d4e5f6a7b8",
        "written": "2026-01-01T00:00:00+00:00",
        "world_size": 1,
        "strategy": "single",
        "seed": 1,
        "examples_per_step": 4,
        "loss": 2.5,
    }
    return Manifest(step=step, **(settings | values))  # type: ignore[arg-type]


def stage(output_dir: Path, step: int) -> Path:
    """What the ranks of a run have written before it is published."""
    folder = output_dir / f".stage-checkpoint-{step}-a1b2c3d4e5f6"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    state = {
        "global_step": step,
        "stateful_callbacks": {STATE_ENTRY: {"attributes": {HAS_MANIFEST: True}}},
    }
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def checkpoint(output_dir: Path, step: int, **values: object) -> Path:
    """A published checkpoint."""
    folder = output_dir / f"checkpoint-{step}"
    publish(stage(output_dir, step), folder, manifest(step, **values))
    return folder
