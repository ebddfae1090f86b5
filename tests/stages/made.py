"""stages as a run makes them"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.arguments.parse import parse_dict
from luthier.arguments.record import Arguments
from luthier.stages.stage import STAGES, Stage


def make_arguments(stage: str, **settings: object) -> Arguments:
    """The arguments of a run with these settings."""
    needed: dict[str, object] = {
        "model_name_or_path": "model",
        "do_train": True,
        "dataset": "rows.jsonl",
        "output_dir": "run",
    }
    template = {} if stage == "pt" else {"template": "chatml"}
    return parse_dict({"stage": stage, **needed, **template, **settings})


def make_stage(name: str, **settings: object) -> Stage:
    """The stage of a run with these settings."""
    return STAGES.get(name)(make_arguments(name, **settings))


def short_run(
    model: Path, folder: Path, stage: str, rows: Path, /, **settings: Any
) -> dict[str, Any]:
    """The configuration of three logged steps of eight rows."""
    return {
        "model_name_or_path": str(model),
        "stage": stage,
        "dataset": str(rows),
        "template": "chatml",
        "do_train": True,
        "cutoff_len": 64,
        "output_dir": str(folder / "run"),
        "overwrite_output_dir": True,
        "cache_dir": str(folder / "cache"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        **settings,
    }
