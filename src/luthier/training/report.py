"""What a run tells about itself: run.json, the model card, the result files."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCardData

from luthier import console
from luthier.arguments.choices import ADAPTERS
from luthier.arguments.record import Arguments, facts, public_value
from luthier.checkpoints.files import write_json, write_whole
from luthier.checkpoints.fingerprint import versions
from luthier.modeling.source import fingerprint_weights
from luthier.secrecy import masked, masked_throughout

if TYPE_CHECKING:
    from luthier.data.report import DataReport

RUN_RECORD = "run.json"

COST = re.compile(r"_runtime$|_per_sec(ond)?$|_per_step$|_tokens_computed$|^total_flos$|^epoch$")
"""Numbers of a run that say nothing about its model; the card leaves them out."""


def write_run_record(
    folder: Path,
    arguments: Arguments,
    data: DataReport | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `run.json`, on the first rank: all that is needed to do the run again, or to chat.

    Secrets are masked. `data` is what the data route counted and hashed, `engine` what was chosen
    for this machine: layout, micro-batches, recomputation.
    """
    settings = {name: public_value(name, value) for name, value in arguments.flat().items()}
    record = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "working_directory": str(Path.cwd()),
        "arguments": arguments.public(),
        "origins": dict(arguments.origins),
        "notes": list(arguments.notes),
        "settings": settings,
        "versions": versions(),
        "platform": machine(),
        "engine": None if engine is None else dict(engine),
        "data": None if data is None else data.as_dict(),
        "base": fingerprint_weights(str(arguments.model.model_name_or_path)),
    }
    path = folder / RUN_RECORD
    return write_json(path, masked_throughout(record)) if console.is_main_process() else path


def save_metrics(folder: Path, split: str, metrics: Mapping[str, float]) -> Path:
    """Writes numbers to `{split}_results.json`, and into `all_results.json`; if there are any."""
    path = folder / f"{split}_results.json"
    if not (metrics and console.is_main_process()):
        return path
    everything = folder / "all_results.json"
    merged = json.loads(everything.read_text(encoding="utf-8")) if everything.exists() else {}
    write_json(everything, dict(sorted((merged | dict(metrics)).items())))
    return write_json(path, dict(sorted(metrics.items())))


USE_OF_SCORES = """\
## Use

A score of an answer, the higher the better; only differences between answers to the same prompt
mean something. It is read at the last token that is not padding, so pad with the tokenizer here.

```python
from {package} import {kind}
from transformers import AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {kind}.from_pretrained(
    folder, dtype="float32"{others}
)
messages = [
    {{"role": "user", "content": "Which wood is the belly of a violin made of?"}},
    {{"role": "assistant", "content": "Spruce."}},
]
text = tokenizer.apply_chat_template(messages, tokenize=False)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
score = model(**inputs).logits[0, 0].item()
```"""


def write_model_card(
    folder: Path,
    arguments: Arguments,
    metrics: Mapping[str, float],
    log_history: Sequence[Mapping[str, float]] = (),
    *,
    scores: bool = False,
) -> Path:
    """Writes `README.md`, on the first rank: front matter of the hub, settings, results, versions.

    Of a model that scores sequences it says how to load it.

    A `training_loss.png` in the folder is shown; evaluations in `log_history` become a table.
    """
    path = folder / "README.md"
    if not console.is_main_process():
        return path
    method = arguments.finetuning.finetuning_type
    base = _hub_name(str(arguments.model.model_name_or_path))
    datasets = [_hub_name(name) for name in arguments.data.dataset]
    front = ModelCardData(
        base_model=base,
        library_name=ADAPTERS.get(method).needs or "transformers",
        pipeline_tag="text-classification" if scores else "text-generation",
        tags=["luthier", method, arguments.finetuning.stage],
        datasets=datasets or None,
    )
    trained_on = ", ".join(f"`{name}`" for name in datasets) or "no data set"
    sections = [
        f"---\n{front.to_yaml()}\n---",
        f"# {folder.resolve().name}",
        f"`{base}`, fine-tuned with luthier "
        f"({arguments.finetuning.stage}, {method}) on {trained_on}.",
        *([use_of_scores(method)] if scores else []),
        "## Settings\n\n" + _table(("setting", "value"), _settings(arguments)),
    ]
    rows = [(name, _number(metrics[name])) for name in sorted(metrics) if not COST.search(name)]
    if rows:
        sections.append("## Results\n\n" + _table(("metric", "value"), rows))
    evaluations = _evaluations(log_history)
    if evaluations:
        sections.append("## Evaluations\n\n" + _table(*evaluations))
    if (folder / "training_loss.png").exists():
        sections.append("![training loss](training_loss.png)")
    sections.append("## Versions\n\n" + _table(("package", "version"), list(versions().items())))
    return write_whole(path, [masked("\n\n".join(sections)), "\n"])


def use_of_scores(method: str) -> str:
    """How a model that scores, trained by a method, is loaded and asked, as a section of a card."""
    kind, package, others = "AutoModelForSequenceClassification", "transformers", ""
    if ADAPTERS.get(method).needs:  # the base model's own configuration says neither
        kind, package = "AutoPeftModelForSequenceClassification", ADAPTERS.get(method).needs
        others = ", num_labels=1, pad_token_id=tokenizer.pad_token_id"
    return USE_OF_SCORES.format(kind=kind, package=package, others=others)


def machine() -> dict[str, Any]:
    """What the run computes on."""
    cuda = range(torch.cuda.device_count())
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(index) for index in cuda],
        "cuda": torch.version.cuda,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _hub_name(name: str) -> str:
    """A name that the hub accepts: `owner/name` as it is, of a path only its last part."""
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if is_path or Path(name).exists():
        return Path(name).expanduser().resolve().name
    return name


def _settings(arguments: Arguments) -> list[tuple[str, str]]:
    """What the card shows: settings of all runs and of the stage, then those of the method."""
    values, method = arguments.flat(), arguments.finetuning.finetuning_type
    stage = arguments.finetuning.stage
    known = [
        (name, each.methods)
        for name, each in facts().items()
        if each.on_card and (not each.stages or stage in each.stages)
    ]
    names = [name for name, its in known if not its] + [n for n, its in known if method in its]
    shown = {name: public_value(name, values[name]) for name in names}
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in shown.items()
        if value not in (None, [], "")
    ]


def _evaluations(
    log_history: Sequence[Mapping[str, float]],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    names = sorted(
        {
            name
            for log in log_history
            for name in log
            if name.startswith("eval_") and name.endswith(("_loss", "_accuracy"))
        }
    )
    by_step: dict[float, dict[str, float]] = {}
    for log in log_history:
        found = {name: log[name] for name in names if name in log}
        if found:
            by_step.setdefault(log["step"], {}).update(found)
    if not names:
        return None
    rows = [
        (f"{step:,}", *(_number(found[name]) if name in found else "" for name in names))
        for step, found in by_step.items()
    ]
    return ("step", *names), rows


def _number(value: float) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
