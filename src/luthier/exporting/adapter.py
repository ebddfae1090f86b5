"""An adapter as a folder that vLLM's `--lora-modules` loads beside its base.

Source of what it takes: vllm/lora/peft_helper.py (`PEFTHelper.validate_legal`) and the values of
`--max-lora-rank` in vllm/config/lora.py of vLLM. What it does not know there it ignores, which
would be another model, so that is refused here as well.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import ModelError
from luthier.exporting.proof import Probe, answer, compare, read
from luthier.modeling.adapters.beside import load_adapter
from luthier.modeling.adapters.file import CONFIG, FILE

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of `--max-lora-rank`, 16 by default."""

DEFAULT_RANK = 16

IGNORED = (
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
)
"""Settings of peft that vLLM does not read."""

MERGED = "Leave adapter out: the merged model needs nothing of vLLM."


def find_adapter(arguments: Arguments) -> Path:
    """The folder of the one adapter that is exported; a ModelError where vLLM cannot load it."""
    adapters = arguments.model.adapter_name_or_path
    if len(adapters) != 1:
        raise ModelError(
            f"adapter: {len(adapters)} adapters are named (adapter_name_or_path), and vLLM puts "
            f"one at a time beside its base. {MERGED}"
        )
    folder = Path(adapters[0], arguments.model.adapter_folder or "").expanduser()
    if not (folder / FILE).is_file():
        raise ModelError(f"adapter: {folder} has no {FILE}. Name the folder of an adapter.")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    problems = [*problems_of(config)]
    if problems:
        raise ModelError(f"adapter: vLLM does not load it: {'; '.join(problems)}. {MERGED}")
    return folder


def problems_of(config: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM refuses, or would leave out in silence, of an adapter_config.json."""
    if config.get("peft_type") != "LORA":
        yield f"it is {config.get('peft_type')}, no LORA"
    if config.get("task_type") == "SEQ_CLS":
        yield "it is of a reward model, whose score is no part of LoRA"
    if saved := config.get("modules_to_save"):
        yield f"modules are trained whole (modules_to_save: {', '.join(saved)})"
    if config.get("use_dora"):
        yield "it is DoRA (use_dora)"
    if (bias := config.get("bias", "none")) != "none" or config.get("lora_bias"):
        yield f"biases are trained (bias: {bias})"
    yield from (f"it has a {name}, which vLLM ignores" for name in IGNORED if config.get(name))
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "loftq", "corda", "eva")):
        yield f"it stands on other weights than the base's ({config['init_lora_weights']})"
    ends = {"embed_tokens", "lm_head", "wte"} & {*_names(config.get("target_modules"))}
    if ends:
        yield f"it lies on embeddings or head ({', '.join(sorted(ends))})"
    if config["r"] > RANKS[-1]:
        yield f"its rank {config['r']} is above {RANKS[-1]}"


def write_adapter(
    arguments: Arguments,
    folder: Path,
    place: Path,
    name: str,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    probes: list[Probe],
) -> str:
    """Writes the folder's adapter to another place, and reads it back by plain peft.

    Args:
        arguments: of the export.
        folder: where the adapter is.
        place: where it is written.
        name: what the place will be called.
        model: the base.
        tokenizer: with the chat template that was trained.
        probes: what both are asked.

    Returns:
        The words that serve it.

    Raises:
        ModelError: if what is read back is not the adapter.
    """
    adapted = load_adapter(model, str(folder), arguments.changed(adapter_folder=None))
    probes = answer(adapted, probes)
    expected = read(adapted, probes)
    base = adapted.unload()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    text = json.dumps(config | {"inference_mode": True}, indent=2, sort_keys=True)
    (place / CONFIG).write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(folder / FILE, place / FILE)
    tokenizer.save_pretrained(place)
    found = compare(expected, read(PeftModel.from_pretrained(base, place).eval(), probes))
    console.info(f"read back by peft: {found.largest:.2g} apart at most; bound 0")
    if found.largest > 0:
        raise ModelError(f"what was written is not the adapter: {found} apart. Please report it.")
    words = serve_line(config["r"], name, str(arguments.model.model_name_or_path))
    console.info(words)
    return words


def serve_line(rank: int, name: str, base: str) -> str:
    """The words that serve it."""
    least = next(each for each in RANKS if each >= rank)
    flag = f" --max-lora-rank {least}" if least > DEFAULT_RANK else ""
    return (
        f"vllm serve {base} --enable-lora --lora-modules {name}={name}{flag} "
        f"--chat-template {name}/chat_template.jinja"
    )


def _names(targets: Any) -> list[str]:
    listed = [targets] if isinstance(targets, str) else list(targets or ())
    return [each.rpartition(".")[2] for each in listed]
