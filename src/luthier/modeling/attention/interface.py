"""Tree attention in the models of transformers, through the interface that they all ask.

`install_tree_attention` gives a model the attention function "luthier_tree". It attends by the
tree where the model's forward gets the keyword argument `tree`, and hands over to the model's own
attention and mask function where it does not.
"""

# T tokens, H query heads, K key heads, D head size

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from luthier.errors import ModelError
from luthier.modeling.attention.backends import attend_tree
from luthier.modeling.attention.mask import AttentionArguments, TreeMask
from luthier.records import Segment

NAME = "luthier_tree"
PLAIN = "sdpa"
"""What NAME alone stands before; before others it is followed by their name."""

UNKNOWN_ARGUMENTS = ("position_bias", "indices", "block_indices", "sinks", "cache")
"""Keyword arguments of attention functions that say what a tree's attention does not do."""

Attended: TypeAlias = tuple[Tensor, Tensor | None]
"""What an attention function gives: (B, T, H, E), and its weights where it has them."""

_open: list[TreeMask] = []
_untraced: Callable[..., Any] = torch.compiler.disable


def install_tree_attention(model: nn.Module) -> None:
    """Lets a model, bare or adapted, attend by a token tree when its forward gets one.

    Without the keyword argument `tree` every forward computes what it did before. What is saved
    of the model does not tell.

    Raises:
        ModelError: if its attention does not go through transformers' `AttentionInterface`.
    """
    base = next((each for each in model.modules() if isinstance(each, PreTrainedModel)), None)
    if base is None or not base._can_set_attn_implementation():
        raise ModelError(
            f"{type(base or model).__name__} computes its attention itself, not through "
            "transformers' AttentionInterface, so it cannot attend by a token tree. Use layout: "
            "padded."
        )
    parameters = inspect.signature(base.forward).parameters.values()
    if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters):
        raise ModelError(
            f"the forward of {type(base).__name__} takes no other arguments than its own, so its "
            "layers cannot be handed a token tree. Use layout: padded."
        )
    for module, config in _configured(model):
        forward: Any = inspect.unwrap(type(module).forward)
        asks = inspect.isfunction(forward) and "get_interface" in forward.__code__.co_names
        if asks and not _is_installed(config):
            _own_function(type(module), config._attn_implementation)
    for _, config in _configured(model):
        if not _is_installed(config):
            config._attn_implementation_internal = _register(config._attn_implementation)


def remove_tree_attention(model: nn.Module) -> None:
    """Gives a model its own attention back."""
    for _, config in _configured(model):
        if _is_installed(config):
            config._attn_implementation_internal = _plain_name(config._attn_implementation)


@contextmanager
def tree_arguments(segments: Sequence[Segment], device: torch.device) -> Iterator[dict[str, Any]]:
    """The keyword arguments with which a model's forward attends by a tree.

    While it is open the model makes no masks, and an attention layer that does not get the tree is
    an error. Gradient checkpointing may compute layers again after it was closed.

    Raises:
        ModelError: if a layer attends without the tree, or with other than the mask would say.
    """
    tree = TreeMask(segments, device)
    _open.append(tree)
    try:
        yield {"tree": tree}
    finally:
        _open.remove(tree)
    if not tree.num_calls:
        raise ModelError(
            "no attention layer of this model used the token tree. Use layout: padded."
        )
    ignored = tree.windows_asked - tree.windows_used
    if ignored:
        raise ModelError(
            f"this model masks what is {min(ignored):,} tokens away, but its layers do not tell "
            "their attention function so; a token tree would show it. Use layout: padded."
        )


def _configured(model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Every module that reads a configuration, with it; most share one."""
    for module in model.modules():
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig):
            yield module, config


def _is_installed(config: Any) -> bool:
    name: str | None = config._attn_implementation
    return name is not None and name.partition(":")[0] == NAME


def _plain_name(name: str) -> str | None:
    _, separator, plain = name.partition(":")
    return (plain or None) if separator else PLAIN


def _register(plain: str | None) -> str:
    name = NAME if plain == PLAIN else f"{NAME}:{plain or ''}"
    AttentionInterface.register(name, _attention_before(plain))
    known = AttentionMaskInterface._global_mapping

    def make_mask(*inputs: Any, **options: Any) -> Any:
        if not _open:
            return known[plain or "eager"](*inputs, **options)
        _note_window(options.get("local_size"))

    if plain is None or plain in known:
        AttentionMaskInterface.register(name, make_mask)
    return name


@_untraced
def _note_window(window: int | None) -> None:
    if window is not None:
        _open[-1].windows_asked.add(window)


def _attention_before(plain: str | None) -> Callable[..., Attended]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **options: Any,
    ) -> Attended:
        tree = options.pop("tree", None)
        if tree is not None:
            given = (query, key, value, attention_mask, tree, options)
            attended: Attended = _attend(module, *given)
            return attended
        if _open:
            raise ModelError(
                f"{type(module).__name__} was not handed the token tree; its tokens would see "
                "those of other sequences. Use layout: padded."
            )
        function = _own_function(type(module), plain)
        if plain is None or "flash" not in plain:
            return function(module, query, key, value, attention_mask, **options)
        config: Any = module.config
        name = config._attn_implementation
        config._attn_implementation_internal = plain  # flash attention looks its own name up
        try:
            return function(module, query, key, value, attention_mask, **options)
        finally:
            config._attn_implementation_internal = name

    return attention


@_untraced
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    tree: TreeMask,
    options: dict[str, Any],
) -> Attended:
    """Attends by the tree, where the layer asks nothing that a tree does not know.

    Of query (1, H, T, D), key (1, K, T, D) and value (1, K, T, E) it gives (1, T, H, E), and no
    attention weights.
    """
    shape = (query.shape[0], query.shape[2], key.shape[2])
    if shape != (1, tree.num_tokens, tree.num_tokens):
        found = f"{shape[0]} x {shape[1]:,} queries for a tree of {tree.num_tokens:,} tokens"
    elif attention_mask is not None:
        found = "a mask of its own"
    elif options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        found = "sight in both directions"
    else:
        asked = (name for name in UNKNOWN_ARGUMENTS if options.get(name) is not None)
        found = next(asked, "")
    if found:
        raise ModelError(
            f"{type(module).__name__} attends with {found}, which a token tree does not know. "
            "Use layout: padded."
        )
    tree.num_calls += 1
    scale, dropout = options.get("scaling"), options.get("dropout")
    arguments = AttentionArguments(
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks_H=options.get("s_aux"),
        dropout=float(dropout) if dropout and module.training else 0.0,
    )
    if arguments.window is not None:
        tree.windows_used.add(arguments.window)
    kind = query.device.type
    if torch.is_autocast_enabled(kind) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = (each.to(dtype) for each in (query, key, value))
    with torch.autocast(kind, enabled=False):
        out = attend_tree(query, key, value, tree, arguments)
    return out.transpose(1, 2).contiguous(), None


_own_functions: dict[tuple[type[nn.Module], str | None], Callable[..., Attended]] = {}


def _own_function(kind: type[nn.Module], plain: str | None) -> Callable[..., Attended]:
    """What attention layers of a class call for an implementation.

    The eager one has no name in the interface: each model's file has its own, which the layer
    names as the default of its question.
    """
    if (kind, plain) in _own_functions:
        return _own_functions[kind, plain]
    forward: Any = inspect.unwrap(kind.forward)
    known = forward.__globals__.get("ALL_ATTENTION_FUNCTIONS", AttentionInterface())
    found = known.get(plain)
    if found is None:
        asked = forward.__code__.co_names
        name = next((each for each in asked if each.endswith("eager_attention_forward")), None)
        if name is None:
            raise ModelError(
                f"{kind.__name__} does not tell what its eager attention is. Load the model with "
                "flash_attn: sdpa, or use layout: padded."
            )
        found = forward.__globals__[name]
    _own_functions[kind, plain] = found
    function: Callable[..., Attended] = found
    return function
