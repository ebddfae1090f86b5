"""Which model, which tokenizer, and how they are loaded."""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr

from luthier.arguments.knob import CommaList, Section, free, knob


class ModelArguments(Section):
    """Knobs of the model and the tokenizer."""

    model_name_or_path: str | None = knob(None, resume="path", reads=True)
    """The model to start from: a folder, a name on the hub, a `.gguf` file, or
    `package://PACKAGE/FILE` for a file inside an installed package. Required."""
    adapter_name_or_path: CommaList = knob((), resume="path", reads=True)
    """Adapters to load, folders or hub names: all but the last are merged into the model, the last
    is trained on (all are merged with `create_new_adapter`). None by default."""
    adapter_folder: str | None = free(None)
    """The folder inside each adapter's folder or hub repository that holds the adapter. By default
    it stands at the top."""
    cache_dir: str | None = free(None, reads=True)
    """Where downloaded models and data sets are kept. By default in the hub library's own cache in
    the home folder."""
    resize_vocab: bool = knob(False, resume="fixed")
    """Whether the embeddings grow to the tokenizer's length, rounded up to 64 rows. By default only
    when tokens were added."""
    split_special_tokens: bool = knob(False)
    """Whether special tokens that stand in contents (questions, answers, system texts, tools; texts
    in stage `pt`) are read as their letters. Those that the template writes stay tokens, and the
    saved tokenizer does not split. By default all are recognised."""
    add_tokens: CommaList = knob((), resume="fixed")
    """Ordinary tokens to add to the vocabulary, a comma list. None by default."""
    add_special_tokens: CommaList = knob((), resume="fixed")
    """Special tokens to add to the vocabulary, a comma list. None by default."""
    new_special_tokens_config: str | None = knob(None, resume="fixed", reads=True)
    """A YAML file of `token: description`; the tokens are added as special ones and can start from
    the meaning of their description. Wins over `add_special_tokens`. None by default."""
    init_special_tokens: Literal["noise_init", "desc_init", "desc_init_w_noise"] = knob(
        "noise_init", resume="fixed"
    )
    """How the embeddings of new special tokens start: the mean of all rows with noise (the
    default), the mean of their description's tokens, or that with noise."""
    model_revision: str = knob("main")
    """The branch, tag or commit of a model on the hub. By default `main`."""
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = knob(None)
    """How rotary positions are stretched when `cutoff_len` is longer than what the model was made
    for. By default they are not."""
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "fa3"] = free(
        "auto", needs={"fa2": "flash_attn", "fa3": "flash_attn_interface"}
    )
    """The attention kernel of padded batches and of generation: `disabled` is the plain one, `sdpa`
    torch's, `fa2` and `fa3` need a GPU and the package flash-attn. The tree layout has its own, so
    the result is the same. By default the fastest that is there."""
    disable_gradient_checkpointing: bool = free(False)
    """Whether activations are kept for the backward pass instead of computed again: faster, more
    memory. By default `gradient_checkpointing` decides."""
    use_reentrant_gc: bool = free(True)
    """Whether gradient checkpointing, where it is on, uses torch's reentrant form. By default it
    does, as in other tools."""
    upcast_layernorm: bool = knob(False)
    """Whether normalisation weights are kept in float32. By default as loaded."""
    upcast_lmhead_output: bool = knob(False)
    """Whether the output head gives float32. By default it gives the model's dtype; the loss is
    taken in float32 either way."""
    train_from_scratch: bool = knob(False, resume="fixed")
    """Whether the weights start at random and only the configuration and the tokenizer are read. By
    default the weights are loaded."""
    use_kv_cache: bool = free(True)
    """Whether generation keeps keys and values of earlier tokens. By default it does."""
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = free("auto")
    """The dtype of the weights when nothing is trained. By default the one that the model was saved
    in, where the device has it."""
    hf_hub_token: SecretStr | None = free(None)
    """The token to log in to the Hugging Face hub with; never written to a file. By default the one
    of the hub's own login."""
    print_param_status: bool = free(False)
    """Whether every parameter is listed with its dtype, device and whether it is trained. By
    default only the counts are."""
    trust_remote_code: bool = free(False)
    """Whether Python code that comes with a model or a data set may run. By default it may not."""
