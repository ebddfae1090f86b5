"""A longer context than the model was made for, by stretching its rotary positions."""

from __future__ import annotations

import math

from transformers import PreTrainedConfig

from luthier import console
from luthier.errors import ModelError

INFERENCE_FACTOR = 2


def stretch_rope(config: PreTrainedConfig, method: str | None, length: int | None) -> None:
    """Sets a rotary scaling and the longer maximum on a configuration, in place.

    The factor is the whole number of old maxima that `length` needs, 2 when nothing is trained.
    `rope_theta` and whatever else the configuration says of its rotary positions is kept.

    Args:
        config: of the model.
        method: linear, dynamic, yarn or llama3 (`rope_scaling`); None changes nothing.
        length: the longest training example (`cutoff_len`); None when nothing is trained.

    Raises:
        ModelError: if the model has no rotary positions, or several kinds of them.
    """
    if method is None:
        return
    text = config.get_text_config()
    known = text.to_dict()
    current = known.get("rope_parameters") or {}
    maximum = current.get("original_max_position_embeddings", known.get("max_position_embeddings"))
    if "rope_theta" not in current or not maximum:
        raise ModelError(
            f"rope_scaling: {method} does not fit {config.model_type}: its configuration has no "
            "single rope_theta with a max_position_embeddings. Leave rope_scaling out."
        )
    if length is not None and length <= maximum:
        console.warn(
            f"rope_scaling: {method} is not used, because cutoff_len {length:,} is within the "
            f"model's own {maximum:,} positions"
        )
        return
    factor = INFERENCE_FACTOR if length is None else math.ceil(length / maximum)
    scaling = {"rope_type": method, "factor": float(factor)}
    if method != "linear":
        scaling["original_max_position_embeddings"] = int(maximum)
    if method == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    kept = {
        name: current[name] for name in ("rope_theta", "partial_rotary_factor") if name in current
    }
    text.rope_parameters = kept | scaling
    text.max_position_embeddings = int(maximum) * factor
    console.info(f"rope_scaling = {method}, factor {factor}: {maximum:,} -> {maximum * factor:,}")
    if method == "dynamic" and length is not None:
        console.warn(
            "rope_scaling: dynamic changes with the length of each batch; linear, yarn and llama3 "
            "train as they will be used"
        )
