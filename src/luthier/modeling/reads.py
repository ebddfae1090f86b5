"""What a loss asks of a model, without its logits: likelihoods of targets, values at ends.

The model's head learns to answer a read in place of making logits: `answering` has its forward
called with the hidden states of all positions, of which only the sources are gathered.
"""

# N reads, n reads of a chunk, S sequences, V vocabulary, H hidden

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any, NamedTuple, TypeAlias, TypeGuard, TypeVar

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from luthier import console
from luthier.batching.batch import MicroBatch
from luthier.errors import ModelError
from luthier.kernels.linear_logps import (
    Figures,
    Logps,
    Nll,
    Settings,
    linear_logps,
    linear_nll,
    log_probabilities,
    read_products,
)
from luthier.modeling.attention.interface import tree_arguments
from luthier.modeling.dtypes import autocasting
from luthier.modeling.heads import has_score
from luthier.modeling.sharded import gathering, has_shards
from luthier.processes.ranks import gather_objects, share_fate

Answer: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Head and its input (..., H) -> what it returns in the place of logits."""

Reading = TypeVar("Reading", Nll, Logps, "Distribution")

FORM = "_luthier_logit_form"
PLAIN_FORWARD = "_luthier_plain_forward"
"""Attributes of a model and of its head."""

PROBE_TOKENS = 4
PROBE_LOGITS = 60.0
"""The probe shows a model logits between minus and plus this, wider than the soft caps in use."""

COPIES_OF_LOGITS = 5
"""Arrays of the size of a chunk's logits that plain operations and their backward pass hold."""

_answer: ContextVar[Answer | None] = ContextVar("luthier_answer", default=None)


def read_nll(
    model: Any,
    batch: MicroBatch,
    *,
    label_smoothing: float = 0.0,
    with_accuracy: bool = False,
    entropy_of: int = 0,
) -> Nll:
    """The summed negative log-likelihood of a micro-batch's targets.

    The hidden states of the sources are gathered on their way into the head; head, softmax and
    loss are then taken over a few of them at a time, with all that the model does to its logits
    (scales, soft caps). The head gives the result in the place of logits, so wrappers for several
    devices see it as the output of the model.

    Args:
        model: a causal language model, bare, with an adapter, compiled or wrapped.
        batch: padded, or a token tree for a model with tree attention.
        label_smoothing: share of the target distribution that is spread over the vocabulary.
        with_accuracy: counts the targets that were the likeliest token.
        entropy_of: tells the entropies of so many of the likeliest tokens, taken as all there are.
    """
    settings = Settings(
        label_smoothing=label_smoothing, with_correct=with_accuracy, entropy_of=entropy_of
    )

    def read(head: nn.Module, hidden_NH: Tensor, num_logits: int, settings: Settings) -> Nll:
        if is_plain_linear(head):
            return linear_nll(hidden_NH, head.weight, batch.targets, head.bias, settings)
        return Nll.sum_of(_head_figures(head, hidden_NH, batch.targets, num_logits, settings))

    return _read(model, batch, settings, read)


def read_logps(
    model: Any,
    batch: MicroBatch,
    *,
    label_smoothing: float = 0.0,
    with_accuracy: bool = False,
    entropy_of: int = 0,
    against: Distribution | None = None,
) -> Logps:
    """The log-probability of each target; arguments as those of `read_nll`.

    With `against`, of the same reads by another model, also how far the model is from that.
    """
    settings = Settings(
        label_smoothing=label_smoothing,
        with_correct=with_accuracy,
        entropy_of=entropy_of,
        against=against,
    )
    return _read(model, batch, settings, partial(_logps_of, batch.targets))


class Distribution(NamedTuple):
    """What a model says of the next token at each read: hidden states, made logits in chunks."""

    hidden_NH: Tensor
    products: Callable[[Tensor], Tensor]  # (1, n, H) -> (1, n, V), with the weights it had then
    settings: Settings  # how these become logits

    def logps(self, start: int, end: int) -> Tensor:
        """(n, V) log-probabilities at the reads from `start` to `end`, without gradient."""
        with torch.no_grad():
            products_1nV = self.products(self.hidden_NH[None, start:end])
            return log_probabilities(products_1nV[0], self.settings)


def read_distribution(model: Any, batch: MicroBatch) -> Distribution:
    """The whole distributions of a micro-batch's reads; nothing (reads x vocabulary) is made.

    What it gives computes with the weights that the model has now, whatever it learns since.

    Raises:
        ModelError: when ranks hold the weights in parts, and there is an adapter of the head.
    """
    is_in_parts = has_shards(model) or any(isinstance(m, FSDPModule) for m in model.modules())

    def read(
        head: nn.Module, hidden_NH: Tensor, num_logits: int, settings: Settings
    ) -> Distribution:
        if not is_in_parts or isinstance(head, nn.Identity):
            return Distribution(hidden_NH, plain_forward(_as_now(head)), settings)
        if len(_heads(_base(model))) > 1 or not is_plain_linear(head):
            raise ModelError(
                "the distributions of the reference are taken with the head of the model, which "
                "ranks hold in parts and which has an adapter. Leave the head out of lora_target "
                "and additional_target, or let each rank hold the whole model."
            )
        return Distribution(hidden_NH, plain_forward(head), settings)

    return _read(model, batch, Settings(), read)


def _as_now(module: nn.Module) -> nn.Module:
    held = copy.copy(module)
    held._parameters = dict(module._parameters)
    held._modules = {n: each and _as_now(each) for n, each in module._modules.items()}
    return held


class SequenceLogps(NamedTuple):
    """What a model says of the learned tokens of each sequence; float32."""

    sums_S: Tensor  # (S,) with gradient, summed log-probabilities
    counts_S: Tensor  # (S,), how many there are
    logps_N: Tensor  # (N,) with gradient, the log-probability of each
    logits_S: Tensor | None
    """(S,), summed over tokens, the mean logit of the vocabulary; None where that was not asked
    for, or takes logits (a soft cap, an adapter of the head)."""


def sequence_logps(model: Any, batch: MicroBatch, *, with_logits: bool = False) -> SequenceLogps:
    """The log-probabilities of the learned tokens, and their sums by sequence; see `read_nll`.

    With `with_logits` mean logits are told; they are linear in the mean row of the head.
    """
    logits_S: list[Tensor] = []

    def read(head: nn.Module, hidden_NH: Tensor, num_logits: int, settings: Settings) -> Logps:
        logits_N = _mean_logits(head, hidden_NH, settings) if with_logits else None
        if logits_N is not None:
            logits_S.append(sum_by_sequence(batch, logits_N))
        return _logps_of(batch.targets, head, hidden_NH, num_logits, settings)

    logps_N = _read(model, batch, Settings(), read).logps_N
    counts_S = count_by_sequence(batch).to(logps_N)
    sums_S = sum_by_sequence(batch, logps_N)
    return SequenceLogps(sums_S, counts_S, logps_N, logits_S[0] if logits_S else None)


def count_by_sequence(batch: MicroBatch) -> Tensor:
    """(S,) int64, the reads of each sequence."""
    return _bounds(batch).diff()


def places_in_sequence(batch: MicroBatch) -> Tensor:
    """(N,) int64, the place of each read among those of its sequence, 0 for the first."""
    reads_N = torch.arange(len(batch.sequences), device=batch.sequences.device)
    return reads_N - _bounds(batch)[batch.sequences]


def sum_by_sequence(batch: MicroBatch, numbers_N: Tensor) -> Tensor:
    """(S,) sums over the reads of each sequence, with gradient, in the same order on any device."""
    counts_S = count_by_sequence(batch)
    return torch.segment_reduce(numbers_N, "sum", lengths=counts_S, unsafe=True)


def _bounds(batch: MicroBatch) -> Tensor:
    sequences = torch.arange(len(batch.ends) + 1, device=batch.sequences.device)
    # reads come sequence by sequence
    return torch.searchsorted(batch.sequences.contiguous(), sequences)


def _logps_of(
    targets_N: Tensor, head: nn.Module, hidden_NH: Tensor, num_logits: int, settings: Settings
) -> Logps:
    if is_plain_linear(head) and settings.against is None:
        return linear_logps(hidden_NH, head.weight, targets_N, head.bias, settings)
    nll_N, *others = _head_figures(head, hidden_NH, targets_N, num_logits, settings)
    return Logps(-nll_N, *others)


@torch.no_grad()
def _mean_logits(head: nn.Module, hidden_NH: Tensor, settings: Settings) -> Tensor | None:
    """(N,) float32, the mean over the vocabulary; None where that takes logits."""
    if isinstance(head, nn.Identity):  # they are here
        return hidden_NH.float().mean(1)
    if settings.softcap is not None or not is_plain_linear(head):
        return None
    with torch.autocast(hidden_NH.device.type, enabled=False):
        row_H = head.weight.mean(0, dtype=torch.float32)
        bias = 0.0 if head.bias is None else head.bias.float().mean()
        return (hidden_NH.float() @ row_H + bias) * settings.scale


def read_values(model: Any, batch: MicroBatch, positions_N: Tensor | None = None) -> Tensor:
    """The scores of a reward model, see `heads.py`: (N,) or (S,) float32.

    At `positions_N` in the flattened micro-batch, by default the last token of each sequence.
    """
    places_N = batch.ends if positions_N is None else positions_N
    with _forward_arguments(batch) as arguments:
        return _scores(model, places_N, arguments)


def read_each(model: Any, batch: MicroBatch) -> Tensor:
    """(N,) what a loss may be made of at each read: the target's log-probability, or a score."""
    if has_score(_base(model)):
        return read_values(model, batch, batch.sources)
    return read_logps(model, batch).logps_N


def name_of_reads(model: Any) -> str:
    """What `read_each` gives of a model, in a user's word."""
    return "scores" if has_score(_base(model)) else "log-probabilities"


def read_alone(model: Any, ids_T: Tensor) -> Tensor:
    """(T - 1,) the same of one sequence, by the model's own forward on all of it."""
    arguments = {"input_ids": ids_T[None], "use_cache": False}
    if has_score(_base(model)):
        return _scores(model, torch.arange(len(ids_T) - 1, device=ids_T.device), arguments)
    logits_TV: Tensor = model(**arguments).logits[0, :-1]
    return logits_TV.float().log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0]


def _scores(model: Any, places_N: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    def judge(head: nn.Module, hidden: Tensor) -> Tensor:
        scores_N: Tensor = plain_forward(head)(_gather(hidden, places_N)).flatten()
        # the model gives back what stands at one token of each row
        return scores_N.expand(*hidden.shape[:-1], -1)

    with answering(model, PLAIN, judge):
        scores_BN: Tensor = model(**arguments).logits
    return scores_BN[0]


def _read(
    model: Any,
    batch: MicroBatch,
    settings: Settings,
    read: Callable[[nn.Module, Tensor, int, Settings], Reading],
) -> Reading:
    form = logit_form(model, batch.input_ids)
    if form is None:
        with _forward_arguments(batch) as arguments:
            logits_NV = _gather(model(**arguments).logits, batch.sources)
        return read(nn.Identity(), logits_NV, logits_NV.shape[1], settings)
    settings = replace(settings, scale=form.scale, softcap=form.softcap)
    readings: list[Reading] = []

    def answer(head: nn.Module, hidden: Tensor) -> Tensor:
        hidden_NH = _gather(hidden, batch.sources)
        readings.append(read(head, hidden_NH, form.num_logits, settings))
        # cloned, because FSDP2 hangs its gathering on what a module returns, which may be no view
        return readings[0][0].reshape(1, -1, 1).clone()

    with answering(model, form, answer), _forward_arguments(batch) as arguments:
        result: Tensor = model(**arguments).logits
    (reading,) = readings
    return type(reading)(result.reshape(reading[0].shape), *reading[1:])


@contextmanager
def _forward_arguments(batch: MicroBatch) -> Iterator[dict[str, Any]]:
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.segments:
        with tree_arguments(batch.segments, batch.input_ids.device) as tree:
            yield arguments | {"position_ids": batch.position_ids, **tree}
    else:
        yield arguments | {"attention_mask": batch.attention_mask}


def _gather(states: Tensor, positions: Tensor) -> Tensor:
    # not states[positions], whose backward pass takes three times as long on a CPU
    return states.flatten(0, -2).index_select(0, positions)


def _head_figures(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, num_logits: int, settings: Settings
) -> Figures:
    """Figures of a head of any kind: its own forward, made again for each chunk's gradient."""
    against: Distribution | None = settings.against
    copies = COPIES_OF_LOGITS * (1 if against is None else 2)
    bytes_of_row = num_logits * torch.float32.itemsize * copies
    rows = settings.rows_of_chunk(len(targets_N), bytes_of_row, hidden_NH.device)

    def figures(hidden_nH: Tensor, targets_n: Tensor, start: int) -> Figures:
        products_1nV = plain_forward(head)(hidden_nH.unsqueeze(0))
        against_nV = None if against is None else against.logps(start, start + len(targets_n))
        return read_products(products_1nV.squeeze(0), targets_n, settings, against_nV)

    chunks: list[Figures] = [
        checkpoint(figures, hidden_nH, targets_n, number * max(rows, 1), use_reentrant=False)
        for number, (hidden_nH, targets_n) in enumerate(
            zip(
                torch.split(hidden_NH, max(rows, 1)),
                torch.split(targets_N, max(rows, 1)),
                strict=True,
            )
        )
    ]
    nll, *others = zip(*chunks, strict=True)
    told = (None if each[0] is None else torch.cat(each) for each in others)
    return Figures(torch.cat(nll), *told)


@dataclass(frozen=True)
class LogitForm:
    """What a model's logits are beside the product of its head."""

    scale: float  # multiplies the product
    softcap: float | None  # then bounds it, y = softcap * tanh(x / softcap); None for no bound
    num_logits: int  # columns of the product
    neutral: tuple[tuple[Any, str, float | None], ...]
    """owner, attribute and value with which the model leaves the head's output alone."""

    def apply(self, products: Tensor) -> Tensor:
        """The logits that the model makes of the head's products."""
        logits = products * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def logit_form(model: Any, input_ids: Tensor) -> LogitForm | None:
    """How a model makes logits of its head's products, found out once; every rank has to call this.

    A few tokens (B, T) go through the model while its head returns made-up products, and what the
    model returns as logits is compared with the operations that are known.

    Returns:
        None when the head does not see all positions at once, or the model does something else
        to its products; such a model is asked for its logits.
    """
    base = _base(model)
    if has_score(base):
        return None
    known = vars(base)  # not a table of models, which would keep them alive
    if FORM not in known:
        probe = input_ids[:1, :PROBE_TOKENS]
        form = share_fate(partial(_find_form, model, base, probe))
        found = None if form is None else (form.scale, form.softcap, form.num_logits)
        known[FORM] = form if len(set(gather_objects(found))) == 1 else None
        if known[FORM] is None:
            console.once(
                f"{type(base).__name__} makes its logits in a way of its own: they are made at "
                "all positions, which takes memory (tokens x vocabulary)"
            )
    agreed: LogitForm | None = known[FORM]
    return agreed


def _find_form(model: Any, base: Any, input_ids: Tensor) -> LogitForm | None:
    if not _heads(base):
        return None
    seen: list[Tensor] = []

    def show_probe(head: nn.Module, hidden: Tensor) -> Tensor:
        products = plain_forward(head)(hidden)
        probe = torch.linspace(-PROBE_LOGITS, PROBE_LOGITS, products.numel())
        seen.append(probe.view(products.shape).to(products))
        return seen[-1]

    training = [module for module in base.modules() if module.training]
    asked = answering(model, PLAIN, show_probe)
    with gathering(base), torch.no_grad(), autocasting(base), asked:
        try:
            for module in training:
                module.training = False  # without dropout, so that looking draws no random number
            plain = model._orig_mod if is_compiled_module(model) else model
            logits = plain(input_ids=input_ids, use_cache=False).logits
        finally:
            for module in training:
                module.training = True
    if len(seen) != 1 or seen[0].shape[:-1].numel() != input_ids.numel():
        return None
    for form in _known_forms(base, seen[0].shape[-1]):
        expected = form.apply(seen[0].float())
        rounding = 8 * torch.finfo(seen[0].dtype).eps * expected.abs().max().item()
        if logits.shape == expected.shape and (logits - expected).abs().max() <= rounding:
            return form
    return None


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


PLAIN = LogitForm(1, None, 0, ())
"""Of a model that does nothing to its logits, or whose form does not matter."""


@contextmanager
def answering(model: Any, form: LogitForm, answer: Answer) -> Iterator[None]:
    """While open, the model's head gives `answer`, and the model leaves it as it is."""
    for head in _heads(_base(model)):
        own = vars(head).get("forward")
        if not (isinstance(own, MethodType) and own.__func__ is forward):
            vars(head).pop(PLAIN_FORWARD, None)
            if own is not None:
                vars(head)[PLAIN_FORWARD] = own
            # bound, so that a copy of the head gets a forward of its own
            vars(head)["forward"] = MethodType(forward, head)
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
    head = base.score if has_score(base) else base.get_output_embeddings()
    heads = [] if head is None else [head]
    if isinstance(head, ModulesToSaveWrapper):
        heads = [head.original_module, *head.modules_to_save.values()]
    return [extract_model_from_parallel(each) for each in heads]
