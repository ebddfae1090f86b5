"""A probe at the start of a run: does a faster computation give what the plain one gives?

Half precision rounds so coarsely that a sequence which sees a little of its neighbour may hide
behind it, and a right computation may look wrong. So structure is judged in float32, where equal
computations agree to a thousandth. Of the run's own dtype is asked that it rounds a faster way not
much more than the plain one: how far does each lie from float32?
"""

# N reads, P chosen parameters

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig

from luthier import console
from luthier.batching.batch import MicroBatch
from luthier.errors import ModelError
from luthier.modeling.device import free_memory
from luthier.modeling.dtypes import Autocast
from luthier.modeling.memory import USABLE
from luthier.modeling.reads import name_of_reads, read_alone, read_each
from luthier.modeling.sharded import full_numel, full_shape, gathering, is_sharded, whole
from luthier.processes.ranks import gather_objects

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest relative difference of equal computations: what the order of sums explains.

Sequences that see each other differ by a tenth and more in the gradients of the layers where they
do, a layer that is wrong by 2 % by that in its own.
"""

MORE_ROUNDED = 3.0
"""How many times as far from float32 as the plain way a faster one may lie in half precision.

Of a few dozen tokens that comes out between 0.7 and 1.5 by chance, by medians of reads and of
tensors. Not by norms: a single token of which a model is unsure may be carried off in one way and
not in the other (SmolLM2-135M with a random LoRA: by 4.2 in its log-probability and nine times in
the whole gradient, where the median of gradients was 1.4 times).
"""

COARSE = 0.25
"""Largest difference in half precision where there is no float32 to hold both against."""

FAR = 0.1
"""A difference from the plain way that is no matter of rounding or of a batch's size."""

PROBED_NUMBERS = 2**24
"""Numbers of the gradients that are compared, at most; that is 64 MiB in float32."""

GRADIENT_NUMBERS = 2**28
"""Numbers of the gradients that are made for it, at most."""

LARGEST_PROBED = 2**20
"""Numbers of the largest tensor among them; norms and adapters are smaller in every model."""

FIGURES = "{:.1e} in {}, {:.1e} in gradients"

NEGLIGIBLE = 1e-3
"""The share of the largest gradient's norm below which a gradient is mostly rounding."""

RANDOM = ("dropout", "pdrop", "dropout_prob", "dropout_p", "layerdrop", "jitter_noise")
"""Ends of the names under which models and their configurations keep how much is drawn at random.

Layers of torch that drop are known by their class.
"""

HALVES = frozenset({torch.bfloat16, torch.float16})

HELD = 2**30
"""Bytes of layers in float32 that are held until the end, where memory has room for them."""

StandIns: TypeAlias = dict[int, nn.Parameter]
"""The identity of a weight -> the float32 leaf in its place."""


class Probe(NamedTuple):
    """The log-probabilities of a few tokens, and gradients of their sum."""

    logps_N: Tensor  # float32, of every read, sequence by sequence
    gradients_P: tuple[Tensor, ...]  # float32, numbers of some trained tensors' gradients
    num_idle: int  # trained tensors that took no part in any of it


class Distance(NamedTuple):
    """How far a probe lies from another one; what is no number is infinitely far."""

    logps: float  # norm of the difference over the spread of the other one's log-probabilities
    logps_median: float  # the same of the read in the middle
    gradients_P: tuple[float, ...]  # norm of each gradient's difference over the other one's

    @property
    def largest(self) -> float:
        """Of all log-probabilities, or of the farthest gradient."""
        return max((self.logps, *self.gradients_P))

    @property
    def medians(self) -> tuple[float, float]:
        """Of log-probabilities and of gradients."""
        return self.logps_median, sorted(self.gradients_P or (0.0,))[len(self.gradients_P) // 2]


class Difference(NamedTuple):
    """How a way differs from the plain one."""

    excess: float  # how many times the difference that rounding explains
    is_far: bool  # whether it is none that a batch's size may explain either
    figures: str  # the difference in words

    @property
    def is_rounding(self) -> bool:
        """Whether both computations may be called equal."""
        return self.excess <= 1

    def __str__(self) -> str:
        return self.figures


class SelfCheck:
    """Sequences computed one by one by the model's own forward, to hold other ways against.

    The model is in training mode while it is looked at, for quantised layers may take another way
    in evaluation mode, and draws nothing at random. Nothing of it is changed afterwards.

    Args:
        model: bare or a peft model, on its device; every rank has to make one.
        sequences: (T,) int64 each; every token but the first is read.
        autocast: makes the context that the run computes in.
        dtype: that products are computed in.

    Raises:
        ModelError: when the plain way itself gives no numbers.
    """

    def __init__(
        self, model: Any, sequences: Sequence[Tensor], autocast: Autocast, dtype: torch.dtype
    ) -> None:
        self.model, self.autocast, self.dtype = model, autocast, dtype
        self.what = name_of_reads(model)
        # trained tensors from all depths of the model, not too large and together not too many
        trained = [
            each
            for each in model.parameters()
            if each.requires_grad and full_numel(each) <= LARGEST_PROBED
        ]
        stride = -(-sum(map(full_numel, trained)) // GRADIENT_NUMBERS)
        self.weights = trained[:: max(stride, 1)]
        self.room: int | None = None
        self.has_float32 = dtype in HALVES and self._fits()
        self.plain: Distance | None = None

        alone = [partial(read_alone, model, each) for each in sequences]
        self.reference = own = self._probe(alone)
        if self.has_float32:
            self.reference = self._probe_float32(alone)
            self.plain = _distance(own, self.reference)
        if not self.reference.logps_N.isfinite().all():
            raise ModelError(
                f"the model's own forward gives {self.what} that are no numbers. Look for "
                "weights that are none: a download that was cut, a merge or an earlier run that "
                "went wrong."
            )
        if self.plain is not None and not math.isfinite(self.plain.largest):
            console.warn(
                f"{_name(dtype)} is too narrow for the numbers of this model's own forward and "
                "backward pass, so losses and gradients may be none. bf16 has float32's range."
            )

    def compare(self, batch: MicroBatch) -> tuple[Difference, bool]:
        """The same tokens the way the run computes them, and whether a trained tensor took no part.

        The micro-batch reads every token but the first of each sequence, in their order.
        """
        forwards = [lambda: read_each(self.model, batch)]
        probe = self._probe(forwards)
        own = exact = _distance(probe, self.reference)
        if self.has_float32:
            exact = _distance(self._probe_float32(forwards), self.reference)
        elif self.dtype in HALVES:
            size = max(own.medians) if math.isfinite(own.largest) else own.largest
            figures = FIGURES.format(own.medians[0], self.what, own.medians[1])
            return Difference(size / COARSE, size > COARSE, figures), probe.num_idle > 0
        # of the structure, and of this way in the run's dtype
        tolerance = TOLERANCE.get(self.dtype, TOLERANCE[torch.float32])
        excess, is_far = exact.largest / tolerance, exact.largest > FAR
        figures = FIGURES.format(exact.logps, self.what, max(exact.gradients_P, default=0.0))
        if self.plain is not None and math.isfinite(self.plain.largest):
            rounded = more_rounded(own, self.plain, torch.finfo(self.dtype).eps)
            is_far |= rounded > 1 and not max(own.medians) <= FAR
            excess = max(excess, rounded)
            figures += (
                " in float32; {} rounds them by {:.1e} and {:.1e}, the model's own layers by "
                "{:.1e} and {:.1e}"
            ).format(_name(self.dtype), *own.medians, *self.plain.medians)
        return Difference(excess, is_far, figures), probe.num_idle > 0

    def _fits(self) -> bool:
        """Whether a layer in float32 has room on every rank; packed weights on none."""
        needed = float32_bytes(self.model)
        device = next(self.model.parameters()).device
        free = free_memory(device)
        rooms = gather_objects(None if free is None else int(USABLE.get(device.type, 0.5) * free))
        self.room = min((each for each in rooms if each is not None), default=None)
        if self.room is None or needed <= self.room:
            return True
        console.info(
            f"self-check: {_name(self.dtype)} alone, since float32 would take "
            f"{console.gibibytes(needed)} of {console.gibibytes(self.room)} of memory"
        )
        return False

    def _probe(self, forwards: Sequence[Callable[[], Tensor]]) -> Probe:
        with gathering(self.model):
            return self._compute(forwards, self.autocast, self.weights)

    def _probe_float32(self, forwards: Sequence[Callable[[], Tensor]]) -> Probe:
        with in_float32(self.model, self.weights, self.room) as stand_ins:
            leaves = [stand_ins.get(id(weight), weight) for weight in self.weights]
            return self._compute(forwards, nullcontext, leaves)

    def _compute(
        self,
        forwards: Sequence[Callable[[], Tensor]],
        autocast: Autocast,
        leaves: Sequence[nn.Parameter],
    ) -> Probe:
        stride = -(-sum(map(full_numel, self.weights)) // PROBED_NUMBERS) or 1
        sums = []
        for leaf in leaves:
            wide = torch.promote_types(leaf.dtype, torch.float32)
            zeros = torch.zeros(full_shape(leaf).numel(), dtype=wide, device=leaf.device)
            sums.append(zeros[::stride])
        logps: list[Tensor] = []
        idle = {id(each) for each in self.model.parameters() if each.requires_grad and leaves}
        with _steady(self.model), torch.set_grad_enabled(bool(leaves)):
            for forward in forwards:
                with autocast():
                    read = forward()
                logps.append(read.detach())
                if leaves:
                    idle -= _took_part(read)
                    found = torch.autograd.grad(read.sum(), leaves, allow_unused=True)
                    for total, gradient in zip(sums, found, strict=True):
                        total += 0 if gradient is None else gradient.flatten()[::stride]
        return Probe(torch.cat(logps), tuple(sums), len(idle))


def more_rounded(own: Distance, plain: Distance, eps: float) -> float:
    """How many times what is allowed a way lies from float32, held against the plain way.

    So much as the `eps` of the dtype is nothing.
    """
    if not math.isfinite(own.largest):
        return own.largest
    pairs = zip(own.medians, plain.medians, strict=True)
    return max(mine / (MORE_ROUNDED * theirs + eps) for mine, theirs in pairs)


def _distance(probe: Probe, reference: Probe) -> Distance:
    apart_N = (probe.logps_N - reference.logps_N).abs()
    spread = (reference.logps_N - reference.logps_N.mean()).norm().clamp_min(1e-6)
    median = apart_N.median() * len(apart_N) ** 0.5
    norms = [float(gradient.norm()) for gradient in reference.gradients_P]
    negligible = NEGLIGIBLE * max(norms, default=0.0) or 1.0
    gradients = [
        float((mine - theirs).norm()) / (norm + negligible)
        for mine, theirs, norm in zip(probe.gradients_P, reference.gradients_P, norms, strict=True)
    ]
    numbers = [float(apart_N.norm() / spread), float(median / spread), *gradients]
    logps, median_logps, *gradients = (math.inf if n != n else n for n in numbers)
    return Distance(logps, median_logps, tuple(gradients))


def _took_part(result: Tensor) -> set[int]:
    """The identities of all leaves that a tensor was computed from."""
    nodes: list[Any] = [result.grad_fn]
    seen: set[Any] = {None, *nodes}
    for node in nodes:
        new = {child for child, _ in node.next_functions} - seen
        seen |= new
        nodes += new
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}


@contextmanager
def _steady(model: nn.Module) -> Iterator[None]:
    """Training mode where something learns, without anything that is drawn at random."""
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    configs = {
        id(config): config
        for module in modules
        if isinstance(config := vars(module).get("config"), PreTrainedConfig)
    }
    owners: list[dict[str, Any]] = [vars(each) for each in (*modules, *configs.values())]
    drawn = [
        (owner, name, value)
        for owner in owners
        for name, value in owner.items()
        if type(value) is float and value and name.endswith(RANDOM)
    ]
    device = next(model.parameters()).device
    learns = any(each.requires_grad for each in model.parameters())
    try:
        for module in modules:
            module.training = learns and not isinstance(module, nn.modules.dropout._DropoutNd)
        for owner, name, _ in drawn:
            owner[name] = 0.0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for owner, name, value in drawn:
            owner[name] = value
        for module, mode in modes:
            module.training = mode


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def in_float32(
    model: nn.Module, leaves: Iterable[nn.Parameter], room: int | None
) -> Iterator[StandIns]:
    """While open, every weight in half precision has a copy in float32 in its place.

    The first layers that fit are held so. A further layer is only while it computes, and again in
    the backward pass, as with gradient checkpointing, so the model may be of any size. Weights of
    packed types stay; those that are held in parts become whole, and every rank has to do the same.
    `room` is bytes that may be taken, the same on every rank; None where nobody knows. What stands
    in for those of `leaves` that are in half precision or held in parts is given.
    """
    rest, layers = _parts(model)
    stand_ins = {id(each): _copy(each, learns=True) for each in leaves if _is_replaced(each)}
    left = HELD if room is None else min(HELD, room - float32_bytes(model))
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with ExitStack() as stack:
        matmul.fp32_precision = "ieee"  # no TensorFloat-32, which rounds as float16 does
        stack.callback(setattr, matmul, "fp32_precision", before)
        stack.enter_context(_swapped(rest, stand_ins))
        for layer in layers:
            left -= _bytes(layer.modules())
            enter = _swapped(list(layer.modules()), stand_ins) if left >= 0 else None
            stack.enter_context(enter or _streamed(layer, stand_ins))
        yield stand_ins


def float32_bytes(model: nn.Module) -> int:
    """What `in_float32` takes at least: all that stands beside the layers, and one of them."""
    rest, layers = _parts(model)
    return _bytes(rest) + max((_bytes(layer.modules()) for layer in layers), default=0)


def _parts(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """What stands beside the layers, and the layers: the children of the outermost lists."""

    def find(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            yield from child if isinstance(child, nn.ModuleList) else find(child)

    layers = list(find(model))
    inside = {module for layer in layers for module in layer.modules()}
    return [module for module in model.modules() if module not in inside], layers


def _places(modules: Iterable[nn.Module]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Where tensors stand that are in half precision, or held in parts."""
    tables: list[dict[str, Any]] = []
    for module in modules:
        tables += module._parameters, module._buffers
    return [
        (table, name, tensor)
        for table in tables
        for name, tensor in table.items()
        if type(tensor) in (nn.Parameter, Tensor) and _is_replaced(tensor)
    ]


def _is_replaced(tensor: Tensor) -> bool:
    return tensor.dtype in HALVES or (is_sharded(tensor) and tensor.is_floating_point())


def _bytes(modules: Iterable[nn.Module]) -> int:
    tensors = {id(tensor): tensor for *_, tensor in _places(modules)}
    return torch.float32.itemsize * sum(map(full_numel, tensors.values()))


def _copy(tensor: Any, *, learns: bool = False) -> Any:
    with whole([tensor]):
        wide = tensor.detach().to(torch.float32, copy=True)
    return nn.Parameter(wide, learns) if isinstance(tensor, nn.Parameter) else wide


@contextmanager
def _swapped(modules: Sequence[nn.Module], stand_ins: StandIns) -> Iterator[None]:
    places, copies = _places(modules), dict(stand_ins)
    try:
        for table, name, tensor in places:
            if id(tensor) not in copies:
                copies[id(tensor)] = _copy(tensor)
            table[name] = copies[id(tensor)]
        yield
    finally:
        for table, name, tensor in places:
            table[name] = tensor


@contextmanager
def _streamed(layer: nn.Module, stand_ins: StandIns) -> Iterator[None]:
    own, before = layer.forward, vars(layer).get("forward")

    def compute(*inputs: Any, **options: Any) -> Any:
        with _swapped(list(layer.modules()), stand_ins):
            return own(*inputs, **options)

    def forward(*inputs: Any, **options: Any) -> Any:
        return checkpoint(partial(compute, **options), *inputs, use_reentrant=False)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before
