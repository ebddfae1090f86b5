"""False alarms and misses of the check at the start of a run, in two tables of forty.

The first asks healthy models: narrow ones of random weights with 8, 28 and 64 layers, and with
`--smollm2 FOLDER` and `--qwen2` one that has learned and a wide one; in bfloat16 and float16, with
a new LoRA, a trained one and in full. The tree with fused layers has to be taken. The second plants
a fault in that way and asks again: it must not be taken.

    python -m tests.chaos.self_check
    python -m tests.chaos.self_check --smollm2 ../SmolLM2-135M-Instruct --qwen2
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from typing import Any
from unittest import mock

import peft
import torch
import transformers
from torch import nn

from luthier import console
from luthier.arguments.parse import parse_dict
from luthier.errors import ModelError
from luthier.example import Example
from luthier.fused import fuse, layers
from luthier.fused.layers import FusedMlp, FusedNorm, FusedProjection
from luthier.modeling import reads, selfcheck
from luthier.modeling.attention import interface
from luthier.training import layout

NARROW: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "gemma2": (
        "Gemma2",
        {
            "attn_implementation": "eager",
            "query_pre_attn_scalar": 1,
            "attn_logit_softcapping": 5.0,
            "sliding_window": 8,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "attn_implementation": "eager",
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "sliding_window": 8,
        },
    ),
}
"""Names -> those of transformers' classes, and what they take beside `NARROW`."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
METHODS = ("new", "trained", "full")
DEPTHS = (8, 28, 64)

QWEN2: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Case:
    """One run to be: a model, what of it learns, and the dtype of products."""

    model: str
    depth: int
    dtype: str
    method: str
    seed: int
    folder: str = ""

    def __str__(self) -> str:
        depth = f" x {self.depth}" if self.depth else ""
        return f"{self.model}{depth}, {self.dtype}, {self.method}, seed {self.seed}"

    def build(self) -> Any:
        """The model as a run has it when it is checked."""
        torch.manual_seed(self.seed)
        dtype = DTYPES[self.dtype]
        model = self._base()
        if self.method == "full":
            return model.float().train()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        if self.model != "gpt_oss":
            targets += ["gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
                if self.method == "trained" and "lora_B" in name:
                    nn.init.normal_(parameter, std=0.02)
        return model.train()

    def _base(self) -> Any:
        if self.folder:
            return transformers.AutoModelForCausalLM.from_pretrained(self.folder)
        if self.model == "qwen2-wide":
            return transformers.Qwen2ForCausalLM(
                transformers.Qwen2Config(**QWEN2, tie_word_embeddings=True)
            )
        kind, more = ARCHITECTURES[self.model]
        config = getattr(transformers, f"{kind}Config")
        return getattr(transformers, f"{kind}ForCausalLM")(
            config(**NARROW | more, num_hidden_layers=self.depth)
        )

    def check(self, model: Any) -> tuple[bool, str]:
        """Whether the tree with fused layers is taken, and what was found."""
        draw = random.Random(self.seed)
        size = model.config.get_text_config().vocab_size
        rows = [
            Example([draw.randrange(1, size) for _ in range(length)], [])
            for length in (40, 9, 24, 15)
        ]
        asked = parse_dict(
            {
                "model_name_or_path": "tests",
                "dataset": "rows.json",
                "template": "chatml",
                "output_dir": "out",
                "do_train": True,
            }
        )
        dtype = DTYPES[self.dtype]
        autocast = partial(torch.autocast, "cpu", dtype, enabled=dtype is not torch.float32)
        found: list[str] = []
        compare = selfcheck.SelfCheck.compare

        def listen(check: Any, batch: Any) -> Any:
            result = compare(check, batch)
            way = "tree" if batch.segments else "padded"
            found.append(f"{way}, {result[0].excess:.2g} of what is allowed: {result[0]}")
            return result

        with (
            mock.patch.object(selfcheck.SelfCheck, "compare", listen),
            mock.patch.object(console, "warn", found.append),
            mock.patch.object(console, "info"),
        ):
            try:
                chosen = layout.choose_layout(
                    model,
                    asked,
                    rows,
                    0,
                    fuse=fuse.fuse,
                    unfuse=fuse.unfuse,
                    autocast=autocast,
                    dtype=dtype,
                )
            except ModelError as error:
                found.append(str(error))
                return False, found[0]
        assert found[0].startswith("tree"), found
        is_fused = any("forward" in vars(module) for module in model.modules() if _is_layer(module))
        return chosen.name == "tree" and is_fused, found[0]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(vars(module).get("forward"), layers.FusedForward)


def healthy_cases(smollm2: str | None, *, with_qwen2: bool) -> list[Case]:
    """Forty, or as many as there are without the two large ones."""
    shapes = [each for each in ARCHITECTURES if each != "gpt_oss"]
    cases = [
        Case(model, depth, dtype, METHODS[(i + again) % 3], (i // 3 + 2 * again) % 3)
        for again in range(2)
        for i, (model, depth, dtype) in enumerate(product(shapes, DEPTHS, ("bfloat16", "float16")))
    ]
    if with_qwen2:
        cases[-2:] = [Case("qwen2-wide", 0, "bfloat16", each, 0) for each in ("new", "full")]
    for i, method in enumerate(METHODS if smollm2 else ()):
        cases.append(Case("smollm2", 0, "bfloat16", method, i, str(smollm2)))
    more = (
        Case("llama", 64, dtype, "trained", seed)
        for seed, dtype in product(range(3, 9), ("bfloat16", "float16"))
    )
    return [*cases, *islice(more, max(40 - len(cases), 0))]


# The faults: each is planted in the tree with fused layers while the check looks at it


@contextmanager
def sees_neighbour() -> Iterator[None]:
    """One sequence stands below another one with which it has nothing in common."""
    with _batch(lambda batch: replace(batch, segments=_joined(batch.segments))):
        yield


@contextmanager
def off_by_one() -> Iterator[None]:
    """What continues a prefix stands one position too far behind it."""

    def moved(batch: Any) -> Any:
        depths = batch.position_ids.clone()
        last = max(batch.segments, key=lambda each: (each.parent >= 0, each.end))
        depths[0, last.start : last.end] += 1
        return replace(batch, position_ids=depths)

    with _batch(moved):
        yield


@contextmanager
def wrong_prefix() -> Iterator[None]:
    """A prefix is taken for common in which one token differs."""

    def other(batch: Any) -> Any:
        ids = batch.input_ids.clone()
        first = next(each for each in batch.segments if each.parent < 0)
        ids[0, first.end - 2] = ids[0, first.end - 2] % 200 + 1
        return replace(batch, input_ids=ids)

    with _batch(other):
        yield


@contextmanager
def window_ignored() -> Iterator[None]:
    """A sliding window is not looked at."""
    with _terms(window=None):
        yield


@contextmanager
def softcap_dropped() -> Iterator[None]:
    """Scores are not capped."""
    with _terms(softcap=None):
        yield


@contextmanager
def sinks_dropped() -> Iterator[None]:
    """The softmax has no sinks."""
    with _terms(sinks_H=None):
        yield


@contextmanager
def _scaled(kind: type[layers.FusedForward], scale: float = 1.02) -> Iterator[None]:
    own_fuse = fuse.fuse

    def mislead(model: Any) -> Any:
        said = own_fuse(model)
        fused = [
            module
            for module in model.modules()
            if type(vars(module).get("forward")) is kind and vars(module)["forward"].kind
        ]
        chosen = fused[len(fused) // 2].forward
        own = chosen.fused
        chosen.fused = lambda *inputs, **options: own(*inputs, **options) * scale
        return said

    with mock.patch.object(fuse, "fuse", mislead):
        yield


@contextmanager
def a_without_gradient() -> Iterator[None]:
    """The A of one LoRA layer learns nothing."""
    read = layers.read_projection
    seen: list[Any] = []

    def forget(module: Any, x: Any) -> Any:
        projection = read(module, x)
        if projection is None or projection.a is None:
            return projection
        if module not in seen:
            seen.append(module)
        if module is seen[min(4, len(seen) - 1)] and len(seen) > 4:
            return projection._replace(a=projection.a.detach())
        return projection

    with mock.patch.object(layers, "read_projection", forget):
        yield


@contextmanager
def chunk_dropped() -> Iterator[None]:
    """A few of the reads give no gradient."""
    read = reads.linear_logps

    def drop(*inputs: Any, **options: Any) -> Any:
        found = read(*inputs, **options)
        logps = found.logps_N
        kept = torch.arange(len(logps)) % 10 > 0
        return found._replace(logps_N=torch.where(kept, logps, logps.detach()))

    with mock.patch.object(reads, "linear_logps", drop):
        yield


@contextmanager
def only_in_half(fault: Callable[[], Any]) -> Iterator[None]:
    """The fault, while the check does not compute in float32."""
    own = selfcheck.SelfCheck._probe

    def probe(self: Any, forwards: Any) -> Any:
        with fault():
            return own(self, forwards)

    with mock.patch.object(selfcheck.SelfCheck, "_probe", probe):
        yield


@contextmanager
def _batch(change: Callable[[Any], Any]) -> Iterator[None]:
    own = layout._micro_batch

    def changed(way: Any, *inputs: Any) -> Any:
        batch = own(way, *inputs)
        return change(batch) if batch.segments else batch

    with mock.patch.object(layout, "_micro_batch", changed):
        yield


@contextmanager
def _terms(**changes: Any) -> Iterator[None]:
    own = interface.attend_tree

    def attend(query: Any, key: Any, value: Any, tree: Any, terms: Any) -> Any:
        return own(query, key, value, tree, terms._replace(**changes))

    with mock.patch.object(interface, "attend_tree", attend):
        yield


def _joined(segments: Sequence[Any]) -> tuple[Any, ...]:
    roots = [i for i, each in enumerate(segments) if each.parent < 0]
    joined = list(segments)
    joined[roots[1]] = joined[roots[1]]._replace(parent=roots[0])
    return tuple(joined)


FAULTS: dict[str, tuple[Callable[[], Any], tuple[str, ...], tuple[str, ...]]] = {
    "a sequence sees its neighbour": (sees_neighbour, ("llama", "qwen2"), METHODS),
    "a position off by one": (off_by_one, ("qwen2", "llama"), METHODS),
    "a prefix shared wrongly": (wrong_prefix, ("llama", "gemma2"), METHODS),
    "a window ignored": (window_ignored, ("gemma2", "gpt_oss"), METHODS),
    "a soft cap dropped": (softcap_dropped, ("gemma2",), METHODS),
    "sinks dropped": (sinks_dropped, ("gpt_oss",), METHODS),
    "a norm 2 % too large": (partial(_scaled, FusedNorm), ("llama", "gemma2"), METHODS),
    "a projection 2 % too large": (partial(_scaled, FusedProjection), ("qwen2",), METHODS[:2]),
    "a feed-forward layer 2 % too large": (partial(_scaled, FusedMlp), ("llama",), METHODS),
    "a LoRA A without gradient": (a_without_gradient, ("llama", "qwen2"), ("trained",)),
    "a chunk of the head dropped": (chunk_dropped, ("qwen2", "gemma2"), METHODS),
}
"""What is wrong -> how it is planted, models that have it, methods in which it shows.

A new LoRA's A has no gradient.
"""

ONLY_IN_HALF = ("a window ignored", "a soft cap dropped", "a chunk of the head dropped")
"""Those that are asked once more with float32 left right, as a kernel's own fault would be."""


def faulty_cases() -> Iterator[tuple[str, Case, Callable[[], Any]]]:
    """Forty faults: every one in both dtypes, over depths, models, methods and seeds in turn."""
    turn = 0
    for round_ in range(2):
        for name, (fault, models, methods) in FAULTS.items():
            for dtype in ("bfloat16", "float16"):
                if round_ and name in ("a LoRA A without gradient", "sinks dropped"):
                    continue
                model, method = models[turn % len(models)], methods[(turn // 2) % len(methods)]
                depth = DEPTHS[(turn + round_) % len(DEPTHS)]
                yield name, Case(model, depth, dtype, method, turn % 3), fault
                turn += 1


def ask_healthy(cases: Sequence[Case]) -> int:
    """Prints the first table; returns how many false alarms there were."""
    alarms = 0
    for number, case in enumerate(cases, 1):
        begun = time.perf_counter()
        is_taken, said = case.check(case.build())
        alarms += not is_taken
        verdict = "taken" if is_taken else "FALSE ALARM"
        print(f"{number:3} {verdict:12} {case} ({time.perf_counter() - begun:.1f} s): {said}")
        sys.stdout.flush()
    print(f"false alarms: {alarms} in {len(cases)}\n")
    return alarms


def ask_faulty(cases: Sequence[tuple[str, Case, Callable[[], Any]]]) -> int:
    """Prints the second table; returns how many faults were missed."""
    misses = 0
    for number, (name, case, fault) in enumerate(cases, 1):
        model = case.build()
        with fault():
            is_taken, said = case.check(model)
        misses += is_taken
        print(f"{number:3} {'MISSED' if is_taken else 'found':7} {name}: {case}: {said}")
        sys.stdout.flush()
    print(f"misses: {misses} in {len(cases)}\n")
    return misses


def main(words: Sequence[str] | None = None) -> int:
    """Prints both tables; 1 if anything in them is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smollm2", help="a folder with SmolLM2-135M-Instruct")
    parser.add_argument("--qwen2", action="store_true", help="also 12 layers of Qwen2, 768 wide")
    parser.add_argument("--only", choices=("healthy", "faulty"))
    options = parser.parse_args(words)
    wrong = 0
    if options.only != "faulty":
        wrong += ask_healthy(healthy_cases(options.smollm2, with_qwen2=options.qwen2))
    if options.only != "healthy":
        wrong += ask_faulty(list(faulty_cases()))
        half = [
            (f"{name}, in half precision only", case, partial(only_in_half, fault))
            for name, case, fault in faulty_cases()
            if name in ONLY_IN_HALF
        ]
        wrong += ask_faulty(half)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
