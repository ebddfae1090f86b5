"""How large a model is, how much of it learns, what a step costs, and what a device can do."""

# T tokens, N reads

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier import console
from luthier.modeling.sharded import full_numel, full_shape

LAYER_COUNT_NAMES = ("num_hidden_layers", "num_layers", "n_layer")


def count_layers(config: PreTrainedConfig) -> int | None:
    """The number of layers by the configuration's own word for it; None when it has none."""
    known = config.get_text_config().to_dict()
    return next((known[name] for name in LAYER_COUNT_NAMES if known.get(name)), None)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters learn, and how many there are.

    Shared ones count once. Those that are sharded away count by their full size, those packed
    into 4 bits by what they stand for.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter_size(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def say_counts(model: nn.Module, *, is_trainable: bool, with_each: bool = False) -> None:
    """Prints the counts, and on request every parameter (`print_param_status`)."""
    trainable, total = count_parameters(model)
    if is_trainable:
        share = 100 * trainable / max(total, 1)
        console.info(f"trainable params: {trainable:,} of {total:,} ({share:.2f} %)")
    else:
        console.info(f"params: {total:,}")
    if with_each:
        for name, parameter in model.named_parameters():
            shape, dtype = tuple(full_shape(parameter)), str(parameter.dtype)[len("torch.") :]
            console.info(
                f"{name}: {shape}, {dtype}, {parameter.device}, "
                f"{'trained' if parameter.requires_grad else 'frozen'}"
            )


def parameter_size(parameter: Any) -> int:
    """How many numbers a parameter stands for, sharded or packed as it may be."""
    if type(parameter).__name__ == "Params4bit":
        return int(parameter.numel()) * 2 * int(parameter.element_size())
    return full_numel(parameter)


WHOLE, NONE = 0, -1
"""Windows that are none: all of the sequence before a token, or nothing."""

WINDOW_NAMES = {
    "full_attention": None,
    "hybrid": None,
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
"""Kinds of layers -> the setting that says how far they see; None is all of the sequence."""

WITHOUT_SCORES = ("linear_attention", "conv", "moe")
"""Kinds of layers that compare no pairs of tokens."""

EXPERT_COUNT_NAMES = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

ACTIVE_COUNT_NAMES = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)


@dataclass(frozen=True)
class StepFlops:
    """The cost of a forward and backward pass, in operations; an addition is one of them.

    A matrix of P numbers costs 2 P for each token in the forward pass, 2 P more for the gradient
    of its input where something before it learns, and 2 P for its own where it learns itself:
    6 P when all is trained (Kaplan et al. 2020, section 2.1), 4 P for a frozen matrix above an
    adapter. Attention costs 2 d for a query's product with a key and 2 d for adding a value, for
    each head and each pair of tokens that see each other, and twice that backward (Chowdhery et
    al. 2022, appendix B, who count every pair, also those that a causal mask hides). The output
    head counts where a token is learned. What is computed again, padding, norms, activations and
    the optimizer do not count.
    """

    of_token: int  # of all matrices, active experts only
    of_read: int  # of the output head, for each position that predicts a learned token
    of_pair: dict[int, int]
    """Of attention for each pair of tokens that see each other, by how many tokens back a layer
    sees; WHOLE for all."""

    def of(self, depths_T: Tensor, num_reads: int) -> int:
        """Operations of a micro-batch with (T,) depths, on the CPU, and positions that are read."""
        visible_T = depths_T + 1
        pairs = {
            window: int(
                (visible_T if window == WHOLE else visible_T.clamp(max=window)).sum(
                    dtype=torch.int64
                )
            )
            for window in self.of_pair
        }
        attention = sum(cost * pairs[window] for window, cost in self.of_pair.items())
        return self.of_token * visible_T.numel() + self.of_read * num_reads + attention


def count_flops(model: Any) -> StepFlops | None:
    """The cost of a training step, with `requires_grad` as it will be; None if not known."""
    bare = extract_model_from_parallel(model)
    base = bare.get_base_model() if isinstance(bare, PeftModel) else bare
    text_config = base.config.get_text_config()
    config: dict[str, Any] = text_config.to_dict()
    total, active = (  # experts of a layer, and those that a token passes through
        next((config[name] for name in names if isinstance(config.get(name), int)), None)
        for names in (EXPERT_COUNT_NAMES, ACTIVE_COUNT_NAMES)
    )
    of_token = 0
    starts_learning = any(each.requires_grad for each in base.get_input_embeddings().parameters())
    learns = starts_learning
    body = base.get_decoder()
    for name, parameter in _matrices(body):
        if learns_here := parameter.requires_grad:
            learns = True
        cost = parameter_size(parameter) * (2 + 2 * learns + 2 * learns_here)
        if "experts" in name.split("."):
            if not (total and active):
                return None
            cost = int(cost * (active / total))
        of_token += cost
    head = base.get_output_embeddings()  # none in a model that scores sequences
    of_read = sum(
        parameter_size(parameter) * (2 + 2 * learns + 2 * parameter.requires_grad)
        for _, parameter in (() if head is None else _matrices(head))
    )
    windows = _windows(text_config, config)
    if windows is None:
        return None
    # of one layer forward, for a pair of tokens, all heads together
    heads = int(text_config.num_attention_heads)
    width = config.get("head_dim") or int(text_config.hidden_size) // heads
    of_key, of_value = (config.get(f"{each}_head_dim") or width for each in ("qk", "v"))
    pair_cost = 2 * heads * (int(of_key) + int(of_value))
    of_pair: Counter[int] = Counter()
    layers = [each for each in body.modules() if isinstance(each, GradientCheckpointingLayer)]
    learns = starts_learning or len(layers) != len(windows)
    for i, window in enumerate(windows):
        # forward and twice that backward, where anything up to it learns
        learns = learns or any(each.requires_grad for each in layers[i].parameters())
        if window != NONE:
            of_pair[window] += (3 if learns else 1) * pair_cost
    return StepFlops(of_token, of_read, dict(of_pair))


def _matrices(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What tokens are multiplied by, in the order of the forward pass."""
    for path, each in module.named_modules():
        if isinstance(each, nn.Embedding) or "original_module" in path.split("."):
            continue
        for name, parameter in each.named_parameters(recurse=False):
            if parameter.ndim > 1 and "bias" not in name:
                yield f"{path}.{name}", parameter


def _windows(text_config: Any, config: dict[str, Any]) -> list[int] | None:
    count = count_layers(text_config)
    if count is None:
        return None
    kinds = config.get("layer_types")
    if not kinds:
        return [config.get("sliding_window") or WHOLE] * count
    windows = []
    for kind in kinds[:count]:
        if kind in WITHOUT_SCORES:
            windows.append(NONE)
        elif kind in WINDOW_NAMES:
            name = WINDOW_NAMES[kind]
            windows.append(WHOLE if name is None else config.get(name) or WHOLE)
        else:
            return None
    return windows


PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    ("B200", {"half": 2250}),
    ("H200", {"half": 989, "tf32": 494, "float32": 67}),
    ("H100 PCIe", {"half": 756, "tf32": 378, "float32": 51}),
    ("H100 NVL", {"half": 835, "tf32": 417, "float32": 60}),
    ("H100", {"half": 989, "tf32": 494, "float32": 67}),
    ("H800 PCIe", {"half": 756, "tf32": 378, "float32": 51}),
    ("H800", {"half": 989, "tf32": 494, "float32": 67}),
    ("H20", {"half": 148, "tf32": 74, "float32": 44}),
    ("A100", {"half": 312, "tf32": 156, "float32": 19.5}),
    ("A800", {"half": 312, "tf32": 156, "float32": 19.5}),
    ("A30", {"half": 165, "tf32": 82, "float32": 10.3}),
    ("A40", {"half": 149.7, "tf32": 74.8, "float32": 37.4}),
    ("A10G", {"half": 70, "tf32": 35, "float32": 35}),
    ("A10", {"half": 125, "tf32": 62.5, "float32": 31.2}),
    ("L40S", {"half": 362, "tf32": 183, "float32": 91.6}),
    ("L40", {"half": 181, "tf32": 90.5, "float32": 90.5}),
    ("L4", {"half": 121, "tf32": 60, "float32": 30.3}),
    ("V100-PCIE", {"float16": 112, "float32": 14}),
    ("V100", {"float16": 125, "float32": 15.7}),
    ("T4", {"float16": 65, "float32": 8.1}),
    ("RTX A6000", {"half": 154.8, "tf32": 77.4, "float32": 38.7}),
    ("RTX 4090", {"half": 165.2, "tf32": 82.6, "float32": 82.6}),
    ("RTX 3090 Ti", {"half": 80, "tf32": 40, "float32": 40}),
    ("RTX 3090", {"half": 71, "tf32": 35.6, "float32": 35.6}),
    ("MI300X", {"half": 1307, "float32": 163.4}),
)
"""Part of a GPU's name -> dense peak by the kind of product, the first that fits.

From the vendors' data sheets and architecture papers, without sparsity, sums in float32; `half` is
bfloat16 and float16 alike.
"""

MEASURED_S = 0.25
"""The most seconds that a CPU's rate is measured for."""

MEASURED_SIZES = (128, 256, 512, 1024)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations of a dtype a second that a device can do at most; None if not known.

    A GPU's is that of its data sheet; a CPU's is measured now, on square matrices that fit its
    caches, on the threads that torch uses, for a quarter of a second.
    """
    if device.type == "cpu":
        return measure_products(dtype)
    if device.type != "cuda":
        return None
    return sheet_flops(torch.cuda.get_device_name(device), _kinds(dtype))


def sheet_flops(name: str, kinds: tuple[str, ...]) -> float | None:
    """The data sheet's figure for a GPU's name and the first of the kinds that it states."""
    words = name.upper().replace("-", " ")
    for part, rates in PEAK_TFLOPS:
        if f" {part.upper()} ".replace("-", " ") in f" {words} ":
            return next((rates[kind] * 1e12 for kind in kinds if kind in rates), None)
    return None


@cache
def measure_products(dtype: torch.dtype) -> float:
    """The best rate of some square matrix products on the CPU, in FLOP a second; taken once."""
    best = 0.0
    ends = time.perf_counter() + MEASURED_S
    generator = torch.Generator().manual_seed(0)
    for size in MEASURED_SIZES:
        matrix = torch.rand(size, size, generator=generator).to(dtype)
        work = 2 * size**3
        for number in range(20):
            is_late = number > 2 and time.perf_counter() + work / best > ends
            if is_late:  # but not by the first products, which may have waited for a core
                return best
            begun = time.perf_counter()
            matrix @ matrix
            best = max(best, work / (time.perf_counter() - begun))
    return best


def _kinds(dtype: torch.dtype) -> tuple[str, ...]:
    if dtype is torch.float32:
        is_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return ("tf32", "float32") if is_tf32 else ("float32",)
    return str(dtype).removeprefix("torch."), "half"
