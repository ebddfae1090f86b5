"""stages as a run makes them"""

from __future__ import annotations

from luthier.arguments.parse import parse_dict
from luthier.stages.stage import STAGES, Stage


def make_stage(name: str, **settings: object) -> Stage:
    """The stage of a run with these settings."""
    needed: dict[str, object] = {
        "model_name_or_path": "model",
        "do_train": True,
        "dataset": "rows.jsonl",
        "output_dir": "run",
    }
    template = {} if name == "pt" else {"template": "chatml"}
    return STAGES.get(name)(parse_dict({"stage": name, **needed, **template, **settings}))
