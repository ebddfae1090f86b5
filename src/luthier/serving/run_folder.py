"""The folder of a run -> the arguments that load what was trained there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.arguments.record import facts
from luthier.errors import ModelError
from luthier.secrecy import MASK

RUN_RECORD = "run.json"
ADAPTER_CONFIG = "adapter_config.json"


def arguments_of(folder: Path) -> dict[str, Any]:
    """What `luthier chat FOLDER` means: base model, adapters, template, as the run had them.

    The folder is a run's, a checkpoint in one, an adapter's or a whole model's. What the run
    inferred follows again.

    Raises:
        ModelError: if there is no such folder, or no model in it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder. The folder here is {Path.cwd()}.")
    record = record_of(folder)
    values = _given(record) if record else {}
    values.pop("metric", None)  # code, which no folder may name
    adapter = folder / ADAPTER_CONFIG
    if adapter.exists():
        if not values:
            values["model_name_or_path"] = _json(adapter)["base_model_name_or_path"]
        values["adapter_name_or_path"] = [*_merged_before(values), str(folder)]
        values.pop("finetuning_type", None)  # by default adapters are read
        if not record and _json(adapter).get("task_type") == "SEQ_CLS":
            values["stage"] = "rm"
        values.pop("create_new_adapter", None)
    elif (folder / "config.json").exists():
        values["model_name_or_path"] = str(folder)
        values.pop("adapter_name_or_path", None)
        values.pop("train_from_scratch", None)
        kinds = _json(folder / "config.json").get("architectures") or ()
        if not record and any(kind.endswith("ForSequenceClassification") for kind in kinds):
            values["stage"] = "rm"
    else:
        raise ModelError(
            f"{folder}: neither {ADAPTER_CONFIG} nor config.json is in this folder, so there is no "
            "model to talk to. Name the output_dir of a finished run, or a checkpoint-N in it."
        )
    return values


def record_of(folder: Path) -> dict[str, Any] | None:
    """`run.json` of a run's folder, or of the run that a checkpoint is of; None without any."""
    for place in (folder, folder.resolve().parent):
        if (place / RUN_RECORD).is_file():
            return _json(place / RUN_RECORD)
    return None


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _given(record: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in record["arguments"].items() if value != MASK}
    started_in = Path(record["working_directory"])
    for name in (name for name, known in facts().items() if known.reads):
        match values.get(name):
            case str(path):
                values[name] = _found(path, started_in)
            case list(paths):
                values[name] = [_found(path, started_in) for path in paths]
    return values


def _found(path: str, started_in: Path) -> str:
    moved = started_in / path
    return str(moved) if not Path(path).exists() and moved.exists() else path


def _merged_before(values: dict[str, Any]) -> list[str]:
    """Adapters that were merged into the base before this one: the last one was gone on with."""
    named = values.get("adapter_name_or_path") or []
    earlier = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)
    return earlier if values.get("create_new_adapter") else earlier[:-1]
