"""A model folder -> one GGUF file, as llama.cpp reads it: names, layout, kinds of numbers.

Sources: docs/gguf.md of ggml, and convert_hf_to_gguf.py of llama.cpp, for what each architecture is
told, the order of rotary rows, the offset of Gemma's norms and the factors of long contexts.
"""

# V vocabulary, H hidden, D numbers of a head

from __future__ import annotations

import gc
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from luthier import console
from luthier.arguments.model import ModelArguments
from luthier.errors import ModelError
from luthier.exporting.gguf_tokenizer import TEXTS, describe
from luthier.exporting.proof import Probe, Reading, compare, read
from luthier.modeling.quirks import draw_on_terminals_only
from luthier.modeling.source import WEIGHTS
from luthier.modeling.tokenizer import load_tokenizer
from luthier.optional import need

QUANTIZE = "llama-quantize"
"""llama.cpp's program, which alone makes the K kinds."""

QUANTIZED_ELSEWHERE = {"q4_k_m": "bf16"}
"""Kinds that it makes -> what it makes them of."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls a model, and how it keeps it."""

    name: str
    permutes: bool = False
    """Whether a head's two rotary halves stand in turns (llama's own order)."""
    shifts_norms: bool = False  # whether norms hold 1 + weight


ARCHITECTURES = {
    "llama": Architecture("llama", permutes=True),
    "mistral": Architecture("llama", permutes=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", shifts_norms=True),
    "gemma3_text": Architecture("gemma3", shifts_norms=True),
    "phi3": Architecture("phi3"),
}
"""transformers' `model_type` -> what is written."""


def check_gguf(config: PreTrainedConfig, kind: str, *, scores: bool) -> Architecture:
    """The architecture of a configuration; a ModelError where no file of this kind can be made."""
    text = config.get_text_config()
    if text.model_type not in ARCHITECTURES or scores:
        what = "a reward model, which says no tokens" if scores else f"model_type {text.model_type}"
        raise ModelError(
            f"gguf: {what} cannot be written. What can: {', '.join(ARCHITECTURES)}. Export without "
            "gguf, and convert the folder with llama.cpp's own convert_hf_to_gguf.py."
        )
    if kind in QUANTIZED_ELSEWHERE and shutil.which(QUANTIZE) is None:
        raise ModelError(
            f"gguf: {kind} is made by llama.cpp's program {QUANTIZE}, which is not on the PATH; "
            "install llama.cpp, or take q5_1 or q8_0, which need nothing."
        )
    _rope(text)
    scalar = text.to_dict().get("query_pre_attn_scalar", _head_dim(text))
    if scalar not in (_head_dim(text), text.hidden_size // text.num_attention_heads):
        raise ModelError(
            f"gguf: query_pre_attn_scalar is {scalar:g}, and llama.cpp knows only the size of a "
            "head. Export without gguf."
        )
    return ARCHITECTURES[text.model_type]


def write_gguf(place: Path, file: Path, kind: str) -> Path:
    """Writes a GGUF file of a folder with safetensors, configuration and tokenizer.

    Tensors are read, laid out, quantised and written one after the other.

    Args:
        place: the folder.
        file: what is written.
        kind: a name of `BOUNDS`.

    Raises:
        ModelError: if the architecture, the tokenizer or the kind cannot be written.
    """
    config = AutoConfig.from_pretrained(place)
    architecture = check_gguf(config, kind, scores=False)
    if kind in QUANTIZED_ELSEWHERE:
        return _quantize_elsewhere(place, file, kind)
    gguf: Any = need("gguf", f"gguf: {kind}")
    text = config.get_text_config()
    writer = gguf.GGUFWriter(file, architecture.name)
    _write_facts(gguf, writer, text, kind, file.stem)
    _write_tokenizer(writer, place, text)
    tensors = list(_tensors(gguf, place, text, architecture, kind))
    for each in tensors:
        data = np.empty(0, np.uint8 if each.is_packed else each.numpy_dtype)
        shape = (
            gguf.quant_shape_to_byte_shape(each.shape, each.type) if each.is_packed else each.shape
        )
        size = math.prod(shape) * data.itemsize
        writer.add_tensor_info(each.name, shape, data.dtype, size, each.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in tensors:
        exact = each.read()
        data = gguf.quantize(exact, each.type)
        _check_loss(each, exact, gguf.dequantize(data, each.type), BOUNDS[kind].weights)
        writer.write_tensor_data(data)
    writer.close()
    return file


def estimate_bytes(kind: str, numel: int, numel_of_ends: int) -> int:
    """About the size of a file: embeddings and head have 16 bits where the others have fewer."""
    bits = BOUNDS[kind].bits
    size = ((numel - numel_of_ends) * bits + numel_of_ends * max(bits, 16)) / 8
    return int(size) + (2 * numel if kind in QUANTIZED_ELSEWHERE else 0)


def _check_loss(tensor: _Tensor, exact: Array, kept: Array, bound: float) -> None:
    apart = float(np.linalg.norm(exact - kept) / (np.linalg.norm(exact) or 1.0))
    if not apart <= bound:
        raise ModelError(
            f"gguf: {tensor.name} as {tensor.type.name} is {apart:.2g} of itself off, and "
            f"{bound:g} is the bound: its numbers are too large or too uneven. Take a kind of more "
            "bits."
        )


@dataclass(frozen=True)
class _Tensor:
    name: str  # in the file
    shape: tuple[int, ...]
    type: Any  # of gguf.GGMLQuantizationType
    read: Callable[[], Array]  # float32, laid out as llama.cpp has it

    @property
    def is_packed(self) -> bool:
        return self.type.name not in ("F32", "F16")

    @property
    def numpy_dtype(self) -> type[Any]:
        return np.float16 if self.type.name == "F16" else np.float32


def _tensors(
    gguf: Any, place: Path, text: PreTrainedConfig, architecture: Architecture, kind: str
) -> Iterator[_Tensor]:
    number = {name: each for each, name in gguf.MODEL_ARCH_NAMES.items()}[architecture.name]
    names = gguf.get_tensor_name_map(number, text.num_hidden_layers)
    for file in sorted(place.glob(WEIGHTS[0])):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                own = name.replace("language_model.", "", 1)
                if own.startswith(("model.vision_tower", "model.multi_modal", "vision_", "multi_")):
                    continue
                target = names.get_name(own, try_suffixes=(".weight", ".bias"))
                if target is None:
                    raise ModelError(
                        f"gguf: llama.cpp's {architecture.name} has no weight {name}. Export "
                        "without gguf."
                    )
                shape = tuple(opened.get_slice(name).get_shape())
                yield _Tensor(
                    target,
                    shape,
                    _type_of(gguf, target, shape, kind),
                    partial(_read, file, name, own, text, architecture),
                )
    for name, factors in _rope_factors(text).items():
        yield _Tensor(name, factors.shape, gguf.GGMLQuantizationType.F32, partial(np.copy, factors))


def _type_of(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
    """Norms and biases stay float32; embeddings, and rows of odd length, float16 at least."""
    types = gguf.GGMLQuantizationType
    asked = types[kind.upper()]
    if len(shape) == 1:
        return types.F32
    if asked in (types.F32, types.F16, types.BF16):
        return asked
    block, _ = gguf.GGML_QUANT_SIZES[asked]
    is_kept = name.startswith(("token_embd.", "output.")) or shape[-1] % block
    return types.F16 if is_kept else asked


def _read(
    file: Path, name: str, own: str, text: PreTrainedConfig, architecture: Architecture
) -> Array:
    with safe_open(file, framework="pt") as opened:
        weight = opened.get_tensor(name).float()
    if architecture.permutes and ".q_proj." in own:
        weight = in_turns(weight, text.num_attention_heads)
    if architecture.permutes and ".k_proj." in own:
        weight = in_turns(weight, text.num_key_value_heads)
    if architecture.shifts_norms and own.endswith("norm.weight"):
        weight = weight + 1
    return np.ascontiguousarray(weight.numpy())


def in_turns(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head in llama.cpp's order: the two rotary halves in turns."""
    rows = weight.shape[0]
    parts = weight.reshape(num_heads, 2, rows // num_heads // 2, *weight.shape[1:])
    return parts.swapaxes(1, 2).reshape(weight.shape)


def _write_facts(gguf: Any, writer: Any, text: PreTrainedConfig, kind: str, name: str) -> None:
    known = text.to_dict()
    head_dim = _head_dim(text)
    file_type = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    rope = _rope(text)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    scalings = gguf.RopeScalingType
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(scalings[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    original = rope.get("original_max_position_embeddings") or known.get(
        "original_max_position_embeddings"
    )
    if rope["rope_type"] in ("yarn", "longrope") and original:
        writer.add_rope_scaling_orig_ctx_len(original)
    if rope["rope_type"] == "longrope":
        scale = text.max_position_embeddings / original
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or attention)
    if text.model_type == "gemma2":
        writer.add_attn_logit_softcapping(text.attn_logit_softcapping)
        writer.add_final_logit_softcapping(text.final_logit_softcapping)
    if text.model_type in ("gemma2", "gemma3_text", "phi3") and text.sliding_window:
        writer.add_sliding_window(text.sliding_window)
    elif known.get("sliding_window") and "sliding_attention" in (known.get("layer_types") or ()):
        console.warn(
            f"gguf: llama.cpp's {text.model_type} has no sliding window; answers differ from those "
            f"here where more than {text.sliding_window:,} tokens stand before them"
        )


def _head_dim(text: PreTrainedConfig) -> int:
    return int(text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads)


def _rope(text: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of its rotary positions, of full attention where there are two."""
    rope = dict(text.rope_parameters)
    rope = dict(rope.get("full_attention", rope))
    if rope.get("rope_type", "default") not in ("default", "linear", "yarn", "llama3", "longrope"):
        raise ModelError(
            f"gguf: llama.cpp has no rotary scaling {rope['rope_type']}. Export without gguf."
        )
    return {"rope_type": "default"} | rope


def _rope_factors(text: PreTrainedConfig) -> dict[str, Array]:
    """By name what llama.cpp divides frequencies by, (D/2,); empty where they are plain."""
    rope = _rope(text)
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if rope["rope_type"] != "llama3":
        return {}
    head_dim = _head_dim(text)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    lengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] / lengths
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)}


def _write_tokenizer(writer: Any, place: Path, text: PreTrainedConfig) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place)
    describe(tokenizer, text.vocab_size).write(writer)
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    others = [number for number in stop_ids(place) if number != tokenizer.eos_token_id]
    for add, number in zip(
        (writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False
    ):
        add(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def stop_ids(place: Path) -> list[int]:
    """The tokens that end an answer, as a folder's generation_config.json says."""
    from transformers import GenerationConfig

    found = GenerationConfig.from_pretrained(place).eos_token_id
    return [] if found is None else found if isinstance(found, list) else [found]


@dataclass(frozen=True)
class Bounds:
    """How far a model of some kind of numbers may be from the one that it was made of."""

    bits: float  # of a weight
    logps: float  # log-probabilities, on average
    weights: float  # the root mean square of what weights are off, as a share of theirs


BOUNDS = {
    "f32": Bounds(32, 0, 0),
    "f16": Bounds(16, 0.02, 0.002),
    "bf16": Bounds(16, 0.1, 0.004),
    "q8_0": Bounds(8.5, 0.1, 0.02),
    "q5_1": Bounds(6, 1, 0.1),
    "q5_0": Bounds(5.5, 1, 0.12),
    "q4_1": Bounds(5, 2, 0.2),
    "q4_0": Bounds(4.5, 2, 0.25),
    "q4_k_m": Bounds(4.9, 2, 0.2),
}
"""Kinds of a GGUF file, and what is asked of each when it is read back."""


def read_back(
    place: Path,
    file: Path,
    kind: str,
    probes: Sequence[Probe],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Loads a file by transformers, and holds model and tokenizer against the folder's.

    `dtype` is what both are loaded in, one after the other. Nothing may stand beside the file:
    transformers would read that, too.

    Raises:
        ModelError: if it is not the same model, or reads texts otherwise.
    """
    draw_on_terminals_only()
    config = AutoConfig.from_pretrained(place).get_text_config()
    if config.model_type == "mistral":  # which the file calls llama
        config = LlamaConfig(**config.to_dict() | {"model_type": "llama"})
    expected = _said(AutoModelForCausalLM.from_pretrained(place, dtype=dtype), probes)
    found = _said(
        AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
        ),
        probes,
    )
    apart = compare(expected, found)
    bound = BOUNDS[kind].logps
    console.info(f"{file.name}, read back: {apart}; bound {bound:g} on average")
    if apart.mean > bound:
        raise ModelError(
            f"gguf: {file.name} is {apart} from the model that it was made of, and {bound:g} on "
            "average is the bound. Nothing was published; take a kind of more bits."
        )

    _read_tokenizer_back(place, file, probes)


def _read_tokenizer_back(place: Path, file: Path, probes: Sequence[Probe]) -> None:
    expected = AutoTokenizer.from_pretrained(place)
    found = load_tokenizer(ModelArguments(model_name_or_path=str(file)))
    if found.chat_template != expected.chat_template:
        raise ModelError(f"gguf: {file.name} holds another chat template. Please report it.")
    prompts = [expected.decode(probe.prompt) for probe in probes]
    for number, text in enumerate([*TEXTS, *prompts]):
        # transformers drops the first of several spaces where SentencePiece sets one, llama.cpp not
        text = text.lstrip(" ")
        ours, theirs = (list(each(text)["input_ids"]) for each in (expected, found))
        if ours != theirs:
            said = "one of the prompts"  # whose words are the user's
            if number < len(TEXTS):
                said = (
                    f"{text!r} ({found.convert_ids_to_tokens(theirs)} and not "
                    f"{expected.convert_ids_to_tokens(ours)})"
                )
            raise ModelError(
                f"gguf: {file.name} reads {said} otherwise than its tokenizer.json. Nothing was "
                "published; please report it with the name of the base model."
            )


def _said(model: Any, probes: Sequence[Probe]) -> list[Reading]:
    try:
        return read(model.eval(), probes)
    finally:
        del model
        gc.collect()


def _quantize_elsewhere(place: Path, file: Path, kind: str) -> Path:
    plain = write_gguf(place, file.with_suffix(".plain"), QUANTIZED_ELSEWHERE[kind])
    words = [str(shutil.which(QUANTIZE)), str(plain), str(file), kind.upper()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    plain.unlink()
    if done.returncode or not file.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ModelError(f"gguf: {QUANTIZE} ended with {done.returncode}: {''.join(last)}")
    return file
