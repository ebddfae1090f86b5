"""folders as training leaves them, without training: weights that were moved at random"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from luthier.arguments.parse import parse_dict
from luthier.arguments.record import Arguments
from luthier.checkpoints.pretrained import PretrainedFiles
from luthier.exporting.run import export
from luthier.modeling.loader import load_model
from luthier.modeling.tokenizer import load_tokenizer
from luthier.serving.run_folder import arguments_of
from luthier.stages.stage import STAGES
from luthier.templates.fit import fit_chat_template
from luthier.templates.template import Template
from luthier.training.encoder import fit_template
from luthier.training.report import write_run_record

IDS = torch.tensor([[5, 17, 300, 9, 4, 77, 120, 3]])


def make_run(folder: Path, base: Path, *, seed: int = 1, size: float = 0.05, **values: Any) -> Path:
    """What a run of these arguments leaves in its folder; what learns is moved by `size`."""
    given = {
        "model_name_or_path": str(base),
        "template": "chatml",
        "do_train": True,
        "dataset": "identity",
        "output_dir": str(folder),
    }
    arguments = parse_dict(given | values)
    stage = STAGES.get(arguments.finetuning.stage)(arguments)
    tokenizer = load_tokenizer(arguments.model)
    template, _ = fit_template(arguments, tokenizer)
    if isinstance(template, Template):
        fit_chat_template(tokenizer, template)
    model = load_model(arguments, tokenizer, is_trainable=True, scores=stage.scores)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)
    folder.mkdir(parents=True)
    PretrainedFiles().write(model, tokenizer, folder)
    write_run_record(folder, arguments)
    return folder


def arguments_for(run: Path | dict[str, Any], target: Path, **values: Any) -> Arguments:
    """What `luthier export RUN export_dir=TARGET` means."""
    given = run if isinstance(run, dict) else arguments_of(run)
    return parse_dict(given | {"export_dir": str(target)} | values, purpose="export")


def export_of(run: Path | dict[str, Any], target: Path, **values: Any) -> Path:
    """The exported folder."""
    return export(arguments_for(run, target, **values))


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """(1, T, V), or (1, 1) of a model that scores."""
    with torch.no_grad():
        return model.eval()(ids).logits
