"""Runs -> models by name, those of one base over one copy of its weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError, ModelError
from luthier.generating.request import BARE
from luthier.serving.asking import Served
from luthier.serving.engine import Engine, load_engine
from luthier.stages.stage import STAGES
from luthier.templates.fit import choose_template

BASE = "base"
"""The name of the model under several adapters."""


def load_models(
    runs: Sequence[Arguments], folders: Sequence[Path], served_name: str | None = None
) -> list[Served]:
    """The models that are served, the first one by `served_name` where it is given.

    One run is merged with its adapters and served alone. Several must be adapters of one base,
    with the same template and tokens; they stay beside its weights.

    Args:
        runs: what each run was given, or one configuration.
        folders: of the runs; empty with a configuration.
        served_name: wins over the name of the first run's folder.

    Raises:
        ArgumentsError: if the runs do not go together.
        ModelError: if an adapter does not fit, or cannot stay beside the weights.
    """
    if runs[0].generating.num_beams > 1:
        console.info("num_beams has no effect here: clients are told tokens as they come")
        runs = [one.changed(num_beams=1) for one in runs]
    now = int(time.time())
    names = [folder.resolve().name for folder in folders]
    if len(runs) == 1:
        name = served_name or (names or [_name_of(runs[0])])[0]
        return [Served(name, load_engine(runs[0], scores=True), created=now)]
    for one, name in zip(runs, names, strict=True):
        if STAGES.get(one.finetuning.stage).scores:
            raise ArgumentsError(f"{name} is a reward model (stage: rm); serve it alone")
    if served_name:
        names[0] = served_name
    if len({*names, BASE}) <= len(names):
        raise ArgumentsError(
            f"the models would be called {', '.join((BASE, *names))}, and two names are the same; "
            "rename a folder"
        )
    adapters = dict(zip(names, map(_adapter_of, runs), strict=True))
    engine = load_engine(runs[0].changed(adapter_name_or_path=()))
    _check_alike(runs, names, engine)
    engine = replace(engine, model=load_beside(engine, adapters))
    found = [Served(BASE, engine, BARE, now)]
    return [*(Served(name, engine, name, now) for name in names), *found]


def load_beside(engine: Engine, adapters: Mapping[str, str]) -> Any:
    """The model with several adapters beside its weights, by their names."""
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    from luthier.modeling.adapters.file import adapts_tied
    from luthier.modeling.source import check_adapter

    model = engine.model
    for name, folder in adapters.items():
        check_adapter(folder)
        try:
            config = PeftConfig.from_pretrained(folder)
            if str(getattr(config, "init_lora_weights", "")).startswith("pissa"):
                raise ValueError("PiSSA has taken its weights from the base; use its converted one")
            if isinstance(model, PeftModel):
                model.load_adapter(folder, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name, config=config)
            if adapts_tied(model):
                raise ValueError("it adapts embeddings and head, which are one matrix")
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as problem:
            raise ModelError(
                f"{folder} cannot be served beside others: {problem}\n  Serve it alone: "
                f"luthier api {folder}"
            ) from problem
        console.info(f"adapter {folder}: beside the weights")
    model.requires_grad_(False)
    model.eval()
    return model


def _name_of(arguments: Arguments) -> str:
    """The last name of an adapter's or a model's path."""
    adapters = arguments.model.adapter_name_or_path
    path = str(adapters[-1] if adapters else arguments.model.model_name_or_path)
    return path.rstrip("/").rsplit("/", 1)[-1] or "model"


def _adapter_of(arguments: Arguments) -> str:
    adapters = arguments.model.adapter_name_or_path
    if len(adapters) != 1:
        found = f"{len(adapters)} adapters" if adapters else "no adapter, but a whole model"
        raise ArgumentsError(
            f"several runs are served as adapters of one base, and one of them has {found}; serve "
            "it alone"
        )
    return str(adapters[0])


def _check_alike(runs: Sequence[Arguments], names: Sequence[str], engine: Engine) -> None:
    """Refuses runs that name another model, or read conversations otherwise than the first one."""
    alike = runs[0].model.model_dump(exclude={"adapter_name_or_path"})
    for one, name in zip(runs[1:], names[1:], strict=True):
        own = one.model.model_dump()
        wrong = next((key for key, value in alike.items() if own[key] != value), None)
        if wrong:
            raise ArgumentsError(
                f"{wrong}: {names[0]} has {alike[wrong]!r} and {name} has {own[wrong]!r}; over one "
                "base all begin alike. Serve them apart."
            )
        template = choose_template(one.data, engine.tokenizer)
        if template.fingerprint() != engine.template.fingerprint():
            raise ArgumentsError(
                f"template: {name} reads conversations otherwise than {names[0]} does "
                f"({template.name} and {engine.template.name}). Serve them apart."
            )
