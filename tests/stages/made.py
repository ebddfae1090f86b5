"""stages as a run makes them"""

from __future__ import annotations

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
