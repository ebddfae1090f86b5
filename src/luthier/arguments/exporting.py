"""What becomes of a trained model that leaves, and where it goes."""

from __future__ import annotations

from typing import Literal

from luthier.arguments.knob import Section, free


class ExportingArguments(Section):
    """Knobs of `luthier export`; every other command says that they have no effect there."""

    export_dir: str | None = free(None)
    """The folder that the exported model becomes: one that is not there yet, or empty. Required for
    `luthier export`."""
    export_size: int = free(5, ge=1)
    """The most gigabytes (10^9 bytes) of one file of weights; a larger model is cut into several.
    By default 5."""
    export_device: Literal["cpu", "auto"] = free("cpu")
    """Where adapters are merged and the proof is computed: `cpu` (the default), or `auto`, a GPU
    where there is one."""
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = free("auto")
    """The dtype of the exported weights. By default that of `infer_dtype`, and without it the one
    that the base model is saved in."""
    gguf: Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k_m"] | None = (
        free(None, needs=("gguf",))
    )
    """Whether a GGUF file for llama.cpp and Ollama is written beside the safetensors, and of which
    kind of numbers. `q4_k_m` needs llama.cpp's program `llama-quantize` on the PATH, the others
    nothing. By default none is."""
    ollama: bool = free(False)
    """Whether a Modelfile for Ollama is written: the template in its language, every stop, the
    model's whole context. It takes the GGUF file where there is one. By default none is."""
    adapter: bool = free(False)
    """Whether the adapter itself is exported, as a folder that vLLM's `--lora-modules` loads, and
    nothing is merged. By default the merged model is."""
    export_hub_model_id: str | None = free(None)
    """The repository on the Hugging Face hub that the published folder is uploaded to, with
    `hf_hub_token`; private if it has to be made. By default nothing is uploaded."""
