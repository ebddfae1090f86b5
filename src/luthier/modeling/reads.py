"""What a loss asks of a model, without its logits: likelihoods of targets, values at ends."""

# N reads, n reads of a chunk, S sequences, V vocabulary, H hidden

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.kernels.head_chunks import Figures, Settings, read_products
from luthier.kernels.linear_logps import Logps, Nll, linear_logps, linear_nll
from luthier.modeling.attention.interface import tree_arguments
from luthier.modeling.output_head import answering, is_plain_linear, logit_form, plain_forward
from luthier.records import Segment

COPIES_OF_LOGITS = 5
"""Arrays of the size of a chunk's logits that plain operations and their backward pass hold."""


class Readable(Protocol):
    """A micro-batch as far as reading knows it; see `MicroBatch` in `batching/batch.py`."""

    @property
    def input_ids(self) -> Tensor:
        """(B, T) int64."""
        ...

    @property
    def sources(self) -> Tensor:
        """(N,) positions in the flattened (B * T) that predict a target; may repeat."""
        ...

    @property
    def targets(self) -> Tensor:
        """(N,) int64."""
        ...

    @property
    def ends(self) -> Tensor:
        """(S,) positions of the last tokens of sequences."""
        ...

    @property
    def attention_mask(self) -> Tensor | None:
        """(B, T) of a rectangle; None for a tree."""
        ...

    @property
    def position_ids(self) -> Tensor | None:
        """(1, T) depths of a tree; None for a rectangle."""
        ...

    @property
    def segments(self) -> Sequence[Segment]:
        """Of a tree; empty for a rectangle."""
        ...


Reading = TypeVar("Reading", Nll, Logps)


def read_nll(
    model: Any,
    batch: Readable,
    *,
    label_smoothing: float = 0.0,
    with_accuracy: bool = False,
    with_entropy: bool = False,
) -> Nll:
    """The summed negative log-likelihood of a micro-batch's targets.

    The hidden states of the sources are gathered on their way into the head; head, softmax and
    loss are then taken over a few of them at a time, with all that the model does to its logits
    (scales, soft caps). The head gives the result in the place of logits, so wrappers for several
    devices see it as the output of the model.

    Args:
        model: a causal language model, bare, with an adapter, compiled or wrapped.
        batch: a rectangle, or a token tree for a model with tree attention.
        label_smoothing: share of the target distribution that is spread over the vocabulary.
        with_accuracy: counts the targets that were the likeliest token.
        with_entropy: sums the entropies of the predicted distributions.
    """
    settings = Settings(
        label_smoothing=label_smoothing, with_correct=with_accuracy, with_entropy=with_entropy
    )
    return _read(model, batch, settings, _head_nll)


def read_logps(
    model: Any,
    batch: Readable,
    *,
    label_smoothing: float = 0.0,
    with_accuracy: bool = False,
    with_entropy: bool = False,
) -> Logps:
    """The log-probability of each target; arguments as those of `read_nll`."""
    settings = Settings(
        label_smoothing=label_smoothing, with_correct=with_accuracy, with_entropy=with_entropy
    )
    return _read(model, batch, settings, _head_logps)


def read_values(model: Any, batch: Readable, value_head: nn.Module) -> Tensor:
    """What a value head says of the last token of each sequence.

    Args:
        model: as of `read_nll`; its own head is not computed.
        batch: of which `ends` are read.
        value_head: (S, H) -> (S, 1); its input comes in the dtype of its parameters.

    Returns:
        (S,) float32.
    """

    def judge(hidden: Tensor) -> Tensor:
        dtype = next(value_head.parameters()).dtype
        values_S1: Tensor = value_head(_gather(hidden, batch.ends).to(dtype))
        return values_S1.float()

    form = logit_form(model, batch.input_ids)
    with _forward_arguments(batch) as arguments:
        if form is None:
            output = model(**arguments, output_hidden_states=True)
            return judge(output.hidden_states[-1]).flatten()
        with answering(model, form, lambda head, hidden: judge(hidden).unsqueeze(0)):
            values_1S1: Tensor = model(**arguments).logits
    return values_1S1.flatten()


def _read(
    model: Any,
    batch: Readable,
    settings: Settings,
    read: Callable[[nn.Module, Tensor, Tensor, int, Settings], Reading],
) -> Reading:
    form = logit_form(model, batch.input_ids)
    if form is None:
        with _forward_arguments(batch) as arguments:
            logits_NV = _gather(model(**arguments).logits, batch.sources)
        return read(nn.Identity(), logits_NV, batch.targets, logits_NV.shape[1], settings)
    settings = replace(settings, scale=form.scale, softcap=form.softcap)
    readings: list[Reading] = []

    def answer(head: nn.Module, hidden: Tensor) -> Tensor:
        hidden_NH = _gather(hidden, batch.sources)
        readings.append(read(head, hidden_NH, batch.targets, form.num_logits, settings))
        # cloned, because FSDP2 hangs its gathering on what a module returns, which may be no view
        return readings[0][0].reshape(1, -1, 1).clone()

    with answering(model, form, answer), _forward_arguments(batch) as arguments:
        result: Tensor = model(**arguments).logits
    (reading,) = readings
    return type(reading)(result.reshape(reading[0].shape), *reading[1:])


@contextmanager
def _forward_arguments(batch: Readable) -> Iterator[dict[str, Any]]:
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.segments:
        with tree_arguments(batch.segments, batch.input_ids.device) as tree:
            yield arguments | {"position_ids": batch.position_ids, **tree}
    else:
        yield arguments | {"attention_mask": batch.attention_mask}


def _gather(states: Tensor, positions: Tensor) -> Tensor:
    # not states[positions], whose backward pass takes three times as long on a CPU
    return states.flatten(0, -2).index_select(0, positions)


def _head_nll(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, num_logits: int, settings: Settings
) -> Nll:
    if is_plain_linear(head):
        return linear_nll(
            hidden_NH,
            head.weight,
            targets_N,
            bias=head.bias,
            scale=settings.scale,
            softcap=settings.softcap,
            label_smoothing=settings.label_smoothing,
            with_correct=settings.with_correct,
            with_entropy=settings.with_entropy,
        )
    return Nll.sum_of(_head_figures(head, hidden_NH, targets_N, num_logits, settings))


def _head_logps(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, num_logits: int, settings: Settings
) -> Logps:
    if is_plain_linear(head):
        return linear_logps(
            hidden_NH,
            head.weight,
            targets_N,
            bias=head.bias,
            scale=settings.scale,
            softcap=settings.softcap,
            label_smoothing=settings.label_smoothing,
            with_correct=settings.with_correct,
            with_entropy=settings.with_entropy,
        )
    nll_N, correct_N, entropy_N = _head_figures(head, hidden_NH, targets_N, num_logits, settings)
    return Logps(-nll_N, correct_N, entropy_N)


def _head_figures(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, num_logits: int, settings: Settings
) -> Figures:
    """Figures of a head of any kind: its own forward, made again for each chunk's gradient."""
    bytes_of_row = num_logits * torch.float32.itemsize * COPIES_OF_LOGITS
    rows = settings.rows_of_chunk(len(targets_N), bytes_of_row, hidden_NH.device)

    def figures(hidden_nH: Tensor, targets_n: Tensor) -> Figures:
        products_1nV = plain_forward(head)(hidden_nH.unsqueeze(0))
        return read_products(products_1nV.squeeze(0), targets_n, settings)

    chunks: list[Figures] = [
        checkpoint(figures, hidden_nH, targets_n, use_reentrant=False)
        for hidden_nH, targets_n in zip(
            torch.split(hidden_NH, max(rows, 1)), torch.split(targets_N, max(rows, 1)), strict=True
        )
    ]
    nll, correct, entropy = zip(*chunks, strict=True)
    return Figures(
        torch.cat(nll),
        torch.cat(correct) if settings.with_correct else None,
        torch.cat(entropy) if settings.with_entropy else None,
    )
