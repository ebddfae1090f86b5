"""The head of a model, which answers a read in place of making logits."""

# N reads, R positions (flattened rows), V vocabulary, H hidden

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, TypeAlias, TypeGuard

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from luthier import console
from luthier.modeling.dtypes import autocasting
from luthier.modeling.sharded import gathering
from luthier.processes.ranks import gather_objects, share_fate

Answer: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Head and its input (..., H) -> what it returns in the place of logits."""

FORM = "_luthier_logit_form"
PLAIN_FORWARD = "_luthier_plain_forward"
"""Attributes of a model and of its head."""

PROBE_TOKENS = 4
PROBE_LOGITS = 60.0
"""The probe shows a model logits between minus and plus this, wider than the soft caps in use."""


@dataclass(frozen=True)
class LogitForm:
    """What a model's logits are beside the product of its head.

    Attributes:
        scale: multiplies the product.
        softcap: then bounds it, y = softcap * tanh(x / softcap); None for no bound.
        num_logits: columns of the product.
        neutral: owner, attribute and value with which the model leaves the head's output alone.
    """

    scale: float
    softcap: float | None
    num_logits: int
    neutral: tuple[tuple[Any, str, float | None], ...]

    def apply(self, products: Tensor) -> Tensor:
        """The logits that the model makes of the head's products."""
        logits = products * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


_answer: ContextVar[Answer | None] = ContextVar("luthier_answer", default=None)


def logit_form(model: Any, input_ids: Tensor) -> LogitForm | None:
    """How a model makes logits of its head's products, found out once per model.

    A few tokens go through the model while its head returns made-up products, and what the model
    returns as logits is compared with the operations that are known.

    Args:
        model: a causal language model, bare or wrapped; every rank has to call this.
        input_ids: (B, T), some that the model can read.

    Returns:
        None when the head does not see all positions at once, or the model does something else
        to its products; such a model is asked for its logits.
    """
    base = _base(model)
    known = vars(base)  # not a table of models, which would keep them alive
    if FORM not in known:
        probe = input_ids[:1, :PROBE_TOKENS]
        known[FORM] = _agreed(share_fate(partial(_find_form, model, base, probe)))
        if known[FORM] is None:
            console.once(
                f"{type(base).__name__} makes its logits in a way of its own: they are made at "
                "all positions, which takes memory (tokens x vocabulary)"
            )
    form: LogitForm | None = known[FORM]
    return form


@contextmanager
def answering(model: Any, form: LogitForm, answer: Answer) -> Iterator[None]:
    """While open, the model's head gives `answer`, and the model leaves it as it is."""
    _install(_base(model))
    changed = [(owner, name, getattr(owner, name)) for owner, name, _ in form.neutral]
    token = _answer.set(answer)
    try:
        for owner, name, value in form.neutral:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)
        _answer.reset(token)


def plain_forward(head: nn.Module) -> Callable[..., Tensor]:
    """The forward that a head had before it learned to answer."""
    own: Callable[..., Tensor] | None = vars(head).get(PLAIN_FORWARD)
    return partial(type(head).forward, head) if own is None else own


def is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether weight and bias say all about a head: no adapter, quantisation or forward of its own.

    A weight of another type (a DTensor, say) is computed with by operations of its own.
    """
    # FSDP2 puts a class of its own before that of a module whose weights it gathers
    kind = type(head).__bases__[1] if isinstance(head, FSDPModule) else type(head)
    return (
        kind is nn.Linear
        and PLAIN_FORWARD not in vars(head)
        and type(head.weight) in (nn.Parameter, Tensor)
    )


def _base(model: nn.Module) -> Any:
    """The model of transformers inside its wrappers."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def _heads(base: Any) -> list[nn.Module]:
    """The modules that are called as the head, whichever adapter is active."""
    head = base.get_output_embeddings()
    if head is None:
        return []
    if isinstance(head, ModulesToSaveWrapper):
        heads = [head.original_module, *head.modules_to_save.values()]
    else:
        heads = [head]
    return [extract_model_from_parallel(each) for each in heads]


def _install(base: Any) -> None:
    for head in _heads(base):
        own = vars(head).get("forward")
        if isinstance(own, MethodType) and own.__func__ is forward:
            continue
        vars(head).pop(PLAIN_FORWARD, None)
        if own is not None:
            vars(head)[PLAIN_FORWARD] = own
        # bound, so that a copy of the head gets a forward of its own
        vars(head)["forward"] = MethodType(forward, head)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def forward(self: nn.Module, hidden: Tensor, *args: Any, **options: Any) -> Tensor:
    """The forward of a head: an answer while a read is under way, logits otherwise."""
    answer = _answer.get()
    if answer is None:
        return plain_forward(self)(hidden, *args, **options)
    token = _answer.set(None)  # an answer may call the head itself
    try:
        return answer(self, hidden)
    finally:
        _answer.reset(token)


def _find_form(model: Any, base: Any, input_ids: Tensor) -> LogitForm | None:
    if not _heads(base):
        return None
    seen: list[Tensor] = []

    def show_probe(head: nn.Module, hidden: Tensor) -> Tensor:
        products = plain_forward(head)(hidden)
        probe = torch.linspace(-PROBE_LOGITS, PROBE_LOGITS, products.numel())
        seen.append(probe.view(products.shape).to(products))
        return seen[-1]

    with (
        gathering(base),
        _evaluating(base),
        torch.no_grad(),
        autocasting(base),
        answering(model, LogitForm(1, None, 0, ()), show_probe),
    ):
        plain = model._orig_mod if is_compiled_module(model) else model
        logits = plain(input_ids=input_ids, use_cache=False).logits
    if len(seen) != 1 or seen[0].shape[:-1].numel() != input_ids.numel():
        return None
    for form in _known_forms(base, seen[0].shape[-1]):
        expected = form.apply(seen[0].float())
        rounding = 8 * torch.finfo(seen[0].dtype).eps * expected.abs().max().item()
        if logits.shape == expected.shape and (logits - expected).abs().max() <= rounding:
            return form
    return None


def _agreed(form: LogitForm | None) -> LogitForm | None:
    """The form, if all ranks have found the same."""
    found = None if form is None else (form.scale, form.softcap, form.num_logits)
    return form if len(set(gather_objects(found))) == 1 else None


def _known_forms(base: Any, num_logits: int) -> Iterator[LogitForm]:
    """What models of transformers 5.23 do to logits and can be kept from by a setting.

    Gemma 2, 3, 3n and 4, NanoChat, PaliGemma: soft cap. Granite divides by `logits_scaling`,
    HyperCLOVA X multiplies by it. Cohere multiplies by `logit_scale`, Falcon-H1 by
    `lm_head_multiplier`.
    """
    config = base.config.get_text_config()
    neutral: list[tuple[Any, str, float | None]] = []
    softcap: float | None = getattr(config, "final_logit_softcapping", None)
    if softcap is not None:
        neutral.append((config, "final_logit_softcapping", None))
    factor = 1.0
    exponents: tuple[int, ...] = (1,)
    for owner, name, ways in (
        (config, "logits_scaling", (-1, 1)),
        (base, "logit_scale", (1,)),
        (base.base_model, "lm_head_multiplier", (1,)),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, float | int):
            neutral.append((owner, name, 1.0))
            factor, exponents = factor * value, ways
    for exponent in exponents:
        yield LogitForm(math.pow(factor, exponent), softcap, num_logits, tuple(neutral))


@contextmanager
def _evaluating(base: Any) -> Iterator[None]:
    """Switches dropout off, so that looking draws no random number."""
    training = [module for module in base.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
