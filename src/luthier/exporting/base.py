"""The model that an adapter is put on: whether it is the one that the adapter was trained on."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedConfig

from luthier import console
from luthier.arguments.model import ModelArguments
from luthier.arguments.record import Arguments
from luthier.errors import ModelError
from luthier.modeling.source import fetch_model, fingerprint_weights
from luthier.serving.run_folder import ADAPTER_CONFIG, record_of


def check_base(arguments: Arguments) -> None:
    """Compares the weights with what each adapter's run wrote down of its own.

    Where nothing was written down, the base that an adapter names is compared, if it is here.

    Raises:
        ModelError: if the base is another one, or has changed.
    """
    base = str(arguments.model.model_name_or_path)
    now = fingerprint_weights(base)
    for adapter in arguments.model.adapter_name_or_path:
        folder = Path(adapter).expanduser()
        if not (folder.is_dir() and now):
            continue
        record = record_of(folder) or {}
        if then := record.get("base"):
            changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
            if changed:
                raise ModelError(
                    f"adapter_name_or_path: {adapter} was trained on other weights than those of "
                    f"{base}: {', '.join(changed)} differ{'s' if len(changed) == 1 else ''} from "
                    "what its run.json wrote down. Name the model as it was then."
                )
            continue
        config = folder / (arguments.model.adapter_folder or "") / ADAPTER_CONFIG
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
        theirs = fingerprint_weights(str(named)) if named else {}
        if theirs and theirs != now:
            raise ModelError(
                f"adapter_name_or_path: {adapter} says that it was trained on {named}, whose "
                f"weights are others than those of {base}. Name that one as model_name_or_path."
            )
        if named and not theirs and Path(str(named)).name != Path(base).name:
            console.warn(
                f"{adapter} says that it was trained on {named}, which is not here to compare; it "
                f"is put on {base}"
            )


def check_plain(config: PreTrainedConfig, model_args: ModelArguments) -> None:
    """Refuses packed weights, which nothing can be added to: a ModelError. GGUF's are unpacked."""
    name = str(model_args.model_name_or_path)
    packed = getattr(config, "quantization_config", None)
    if packed is None or fetch_model(name).gguf_file:
        return
    said = packed if isinstance(packed, dict) else packed.to_dict()
    bits = "4-bit " if said.get("load_in_4bit") else "8-bit " if said.get("load_in_8bit") else ""
    raise ModelError(
        f"model_name_or_path: {name} holds {bits}packed weights ({said.get('quant_method')}), and "
        "an adapter cannot be added to them without a loss that was not trained. Name the model "
        "that they were made of."
    )
