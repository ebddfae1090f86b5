"""Models that were read from a GGUF file and unpacked, but still call themselves quantised.

`transformers` 5.23 reads GGUF through a quantiser. Also with every weight unpacked it leaves its
mark on the model, and then the model cannot be trained, saved or resized. Look again when
`GgufConfig(dequantize=True)` gives a model without `quantization_config`.
"""

from __future__ import annotations

from typing import Any

from transformers import GgufConfig, PreTrainedModel


def unpacking() -> dict[str, Any]:
    """Keyword arguments for `from_pretrained` that make plain weights of a GGUF file's blocks."""
    return {"quantization_config": GgufConfig(dequantize=True)}


def forget_gguf(model: PreTrainedModel) -> None:
    """Takes the quantiser's marks off a model whose weights are all plain."""
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        vars(owner).pop(name, None)
    model.is_quantized = False
