"""How examples share a micro-batch: as a token tree where a probe allows it, else padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any, Literal, NamedTuple

import numpy
import torch
from torch import nn

from luthier import console
from luthier.arguments.record import Arguments
from luthier.batching.batch import MicroBatch
from luthier.batching.padded import pad
from luthier.batching.tree import build_tree
from luthier.errors import LuthierError, ModelError
from luthier.example import Example
from luthier.modeling.attention.interface import install_tree_attention, remove_tree_attention
from luthier.modeling.dtypes import Autocast
from luthier.modeling.reads import logit_form
from luthier.modeling.selfcheck import RANDOM, Difference, SelfCheck
from luthier.processes.ranks import gather_objects, share_fate

PROBE_ROWS = 4
"""Examples whose first tokens make the probe."""

PROBE_TOKENS = 24
"""Tokens of the longest sequences of the probe; shorter rows are repeated."""

LayoutName = Literal["tree", "padded"]


@dataclass(frozen=True)
class Layout:
    """What the probe has proven."""

    name: LayoutName  # `tree` packs without padding, `padded` makes rectangles
    shares_prefixes: bool  # whether what examples have in common is computed once
    has_idle_weights: bool = False
    """Whether some weights that learn took no part in the probe of a rank."""


class Way(NamedTuple):
    """One way to compute a micro-batch."""

    layout: LayoutName
    is_fused: bool

    def __str__(self) -> str:
        return f"{self.layout} layout{' with fused layers' if self.is_fused else ''}"


WAYS = (Way("tree", True), Way("padded", True), Way("padded", False))
"""Ways from the fastest to the plainest; the first that agrees with the plain forward is taken."""


class Finding(NamedTuple):
    """What a way gave on a rank."""

    fused: str = ""  # what was fused, in words
    difference: Difference | None = None
    """From sequences computed alone; None if the way cannot be computed."""
    has_idle_weights: bool = False  # see `Layout`
    problem: str = ""  # why it cannot be computed


def choose_layout(
    model: Any,
    arguments: Arguments,
    rows: Sequence[Example],
    pad_token_id: int,
    *,
    fuse: Callable[[nn.Module], object],
    unfuse: Callable[[nn.Module], None],
    autocast: Autocast,
    dtype: torch.dtype,
) -> Layout:
    """Fits the model for the fastest way that gives what its own forward gives, and says which.

    A way has to be right on every rank; all of them take the same.

    Args:
        model: with its adapters, on its device; its attention and its adapted layers are replaced.
        arguments: of the run.
        rows: some examples; the probe is made of their first tokens.
        pad_token_id: fills rectangles.
        fuse: gives layers faster forwards, and says which.
        unfuse: gives them their own back.
        autocast: makes the context that the run computes in.
        dtype: that products are computed in.

    Raises:
        ModelError: when `layout: tree` was asked for and the probe differs, or when no way comes
            near the plain forward.
    """
    asked = arguments.training.layout
    sequences = probe_sequences([numpy.asarray(each.input_ids).tolist() for each in rows])
    device = next(model.parameters()).device
    ids = [torch.tensor(each, device=device) for each in sequences]
    check = share_fate(lambda: SelfCheck(model, ids, autocast, dtype))
    logit_form(model, ids[0][None])  # agreed upon by the ranks before any of them may stumble
    examples = [Example(input_ids=each, labels=each) for each in sequences]

    def fit(way: Way) -> str:
        (install_tree_attention if way.layout == "tree" else remove_tree_attention)(model)
        if way.is_fused:
            return str(fuse(model))
        unfuse(model)
        return ""

    def try_way(way: Way) -> Finding:
        try:
            return Finding(fit(way), *check.compare(batch))
        except torch.OutOfMemoryError:
            raise
        except (LuthierError, TypeError, ValueError, RuntimeError) as problem:
            said = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            said = said.removesuffix(" Use layout: padded.").removesuffix(".")
            return Finding(problem=said)

    problems: list[str] = []
    found = Finding()
    for way in WAYS:
        if asked not in ("auto", way.layout):
            continue
        batch = _micro_batch(way, examples, pad_token_id).to(device)
        found = _worst(gather_objects(share_fate(partial(try_way, way))))
        if found.difference is None:
            problems.append(f"the {way} cannot be computed by this model: {found.problem}")
        elif found.difference.is_rounding:
            for each in problems:
                console.warn(each)
            console.info(
                f"layout: {way.layout}; checked against each sequence alone: {found.difference}"
            )
            if found.fused:
                console.info(found.fused)
            shares = way.layout == "tree" and arguments.training.prefix_sharing == "auto"
            if shares and has_dropout(model):
                shares = False
                console.info("prefix sharing: off, since examples draw their own dropout")
            return Layout(way.layout, shares, found.has_idle_weights)
        else:
            problems.append(
                f"the {way} differs from sequences computed alone by {found.difference}"
            )
        if asked == "tree":
            fit(WAYS[-1])
            raise ModelError(f"layout: tree: {problems[-1]}. With layout: auto it would be padded.")
    if found.difference is None or found.difference.is_far:
        raise ModelError(
            "this model computes something else on a batch than on each of its sequences:\n  "
            + "\n  ".join(problems)
            + "\nWhat it learns would depend on what lies beside an example, so the run ends here. "
            "Look for a layer that mixes the rows of a batch, or for a kernel without a right "
            "backward pass (quantised layers, remote code), and load the model without it."
        )
    for each in problems:
        console.warn(each)
    console.warn("the padded layout is used all the same; results may depend on the batch size")
    return Layout("padded", shares_prefixes=False)


def probe_sequences(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """A small forest of real tokens: a shared prefix that branches twice, and what stands alone."""
    heads = [list(islice(cycle(row), PROBE_TOKENS)) for row in rows if len(row) > 1]
    one, other = heads[0], heads[-1][::-1]
    half, most = PROBE_TOKENS // 2, PROBE_TOKENS * 3 // 4
    return [
        one,
        other,
        one[:half] + other[:half],
        one[:most] + other[: most - half],
        other[half:],
    ]


def has_dropout(model: nn.Module) -> bool:
    """Whether training draws random zeros somewhere in the model."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config: dict[str, Any] = model.config.get_text_config().to_dict()  # type: ignore[operator,union-attr]
    return any(
        isinstance(value, float) and value > 0
        for name, value in config.items()
        if name.endswith(RANDOM)
    )


def switch_dropout_off(model: nn.Module) -> None:
    """Has training draw no random zeros anywhere in the model, in place; says what was drawn."""
    config: Any = model.config.get_text_config()  # type: ignore[operator,union-attr]
    found: dict[str, float] = {}
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p:
            found["dropout"], module.p = module.p, 0.0
    for owner in (*model.modules(), config):
        drawn = {name: value for name, value in vars(owner).items() if name.endswith(RANDOM)}
        for name, value in drawn.items():
            if type(value) is float and value:
                found[name] = value
                setattr(owner, name, 0.0)
    if found:
        said = ", ".join(f"{name} {value:g}" for name, value in found.items())
        console.info(f"dropout: off in this stage, as in others' programs ({said} was set)")


def _micro_batch(way: Way, examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    if way.layout == "tree":
        return build_tree(examples, share_prefixes=True)
    return pad(examples, pad_token_id)


def _worst(findings: Sequence[Finding]) -> Finding:
    """What the ranks have found together, the same on each of them."""
    failed = [rank for rank, each in enumerate(findings) if each.difference is None]
    if failed:
        where = "" if len(failed) == len(findings) else f" (process {failed[0]} says)"
        return Finding(problem=f"{findings[failed[0]].problem}{where}")
    if len({each.fused for each in findings}) > 1:
        return Finding(problem="other layers can be fused on one process than on another")
    differences = [each.difference for each in findings if each.difference]
    return Finding(
        findings[0].fused,
        max(differences, key=lambda each: each.excess),
        any(each.has_idle_weights for each in findings),
    )
