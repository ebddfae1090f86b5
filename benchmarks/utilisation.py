"""Where the time of luthier's step goes, and how much of the machine's matrix-product rate it uses.

The same run is made twice, a process each: under torch.profiler, and with only a clock. Shares are
those of the profiled run, where what no operation took is Python's; the profiler's own cost stands
there too, so the share of the products is at least what is said. The products of the step are then
made alone, in the same dtype and shapes: that is the machine's rate. It is compared with the useful
operations (`luthier.modeling.counts`) over the seconds of the run without a profiler.
The rows end in benchmarks/utilisation.csv.

    python benchmarks/utilisation.py --models smollm2 --steps 2
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

PRODUCTS = ("base products", "head products", "low-rank products", "attention products")
"""Kinds that cannot be avoided."""

RECOMPUTED = "products made again"

SCOPES = {
    "optimizer": r"^Optimizer\.|_foreach_|_fused_adam",
    "softmax and loss": r"Nll|Logps|^LmHead|Loss|nll_loss|cross_entropy|log_softmax|logsumexp",
    "norms": r"^(nn\.Module: )?\w*(RmsNorm|RMSNorm|LayerNorm)",
    "rotary": r"^_Rotate|RotaryEmbedding",
    "activation": r"^_Gate|Activation|SiLU|GELU|nn\.Module: \w*M(LP|lp)$",
    "around attention": r"Attention",
    "low-rank products": r"^_Lora",
}
"""Kinds -> the scopes around an operation by which it is known, the innermost first.

Names of modules come from hooks, those of autograd functions from the profiler. What attention does
beside its products is rotary positions where a model writes them out, and moving of heads.
"""

MODULES = re.compile(r"Norm|Rotary|Activation|SiLU|GELU|M(LP|lp)$|Attention$")
"""Modules whose name is given to what they compute."""

COPIES = re.compile(
    r"aten::(copy_|_?to_copy|cat|stack|clone|contiguous|index\w*|gather|scatter\w*|fill_|zero_|"
    r"embedding\w*|new_\w+|empty\w*|zeros\w*|slice_backward|select_backward|constant_pad_nd)$"
)

ATTENTION = re.compile(r"scaled_dot_product|flash_attention|flex_attention")

MATRIX = re.compile(r"aten::(mm|addmm_?|bmm|baddbmm_?)$")


def main(words: list[str] | None = None) -> None:
    """Measures each model and dtype, prints the tables, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    models = material.each_model(options.models, options.dtypes, options.smollm2, options.threads)
    for model, dtype, folder in models:
        for split in options.splits:
            measure(options, table, model, dtype, split, folder)
    table.draw(
        "share of the step in products that cannot be avoided",
        lambda row: f"{row['model']} {row['dtype']} {row['split']}",
        "products_share",
        line=0.7,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2", "qwen2"], help="also: tiny")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--splits", nargs="+", default=["8x1"], help="batch x accumulation")
    parser.add_argument("--steps", type=int, default=3, help="that are looked at")
    parser.add_argument("--data", help="alpaca rows; without it random ones of usual lengths")
    figures.add_options(parser, __file__)
    return parser.parse_args(words)


def measure(
    options: argparse.Namespace,
    table: figures.Table,
    model: str,
    dtype: str,
    split: str,
    folder: str,
) -> None:
    """Both runs of a model; prints the table and adds a row."""
    rows = options.data or str(material.write_rows(Path(folder) / "rows.json", 1000))
    template, steps = material.TEMPLATES[model], 1 + options.steps
    config = material.configuration(
        folder, rows, template, folder, split=split, steps=steps, dtype=dtype
    )
    timed = sides.run("utilisation:run", {"config": config}, options.threads)
    profiled = sides.run(
        "utilisation:run", {"config": config, "is_profiled": True}, options.threads
    ).value
    wall = timed.value["seconds"]
    kinds = profiled["kinds"]
    watched = profiled["seconds"]
    kinds["Python and the rest"] = watched - sum(kinds.values())
    kinds = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    share = sum(kinds.get(kind, 0.0) for kind in PRODUCTS) / watched
    useful = timed.value["useful_flops"] / profiled["rate"] / wall
    print(
        f"{model}, {dtype}, {split}: {wall / options.steps:.2f} s a step "
        f"({watched / options.steps:.2f} watched); {share:.0%} in "
        f"products that cannot be avoided; useful operations over the machine's rate of "
        f"{profiled['rate'] / 1e9:.0f} GFLOP/s at these shapes: {useful:.2f}",
        flush=True,
    )
    for kind, seconds in kinds.items():
        print(f"    {kind:<22} {seconds / options.steps:8.3f} s {seconds / watched:6.1%}")
    for name, seconds in profiled["others"].items():
        print(f"        of other operations: {name:<30} {seconds / options.steps:8.3f} s")
    needed, made = timed.value["useful_flops"], profiled["product_flops"]
    speed = made / max(profiled["product_seconds"], 1e-9)
    print(
        f"    {needed / options.steps / 1e9:,.0f} useful GFLOP a step; the products but those of "
        f"attention are {made / options.steps / 1e9:,.0f}, made at {speed / 1e9:.0f} GFLOP/s"
    )
    table.add(
        {
            "model": model,
            "dtype": dtype,
            "split": split,
            "threads": options.threads,
            "steps": options.steps,
            "step_s": round(wall / options.steps, 3),
            "products_share": round(share, 3),
            "useful_over_rate": round(useful, 3),
            "rate_gflops": round(profiled["rate"] / 1e9, 1),
            "kinds": " | ".join(f"{kind} {sec / watched:.1%}" for kind, sec in kinds.items()),
        }
    )


def run(config: dict[str, Any], is_profiled: bool = False) -> dict[str, Any]:
    """One run of luthier, watched from the end of the warm steps to its last."""
    import torch

    import luthier
    from benchmarks import peers
    from luthier.training.metrics import Meter

    needed = [0.0]  # operations of the step under way
    count = Meter.flops

    def count_and_keep(self: Meter, step: Any) -> float:
        needed[0] = count(self, step)
        return needed[0]

    Meter.flops = count_and_keep  # type: ignore[method-assign]
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    )

    class Watch(peers.Clock):
        useful_flops = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if is_profiled and state.global_step == peers.WARM_STEPS:
                profiler.start()
            super().on_step_begin(args, state, control, **kwargs)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step > peers.WARM_STEPS:
                self.useful_flops += needed[0]
            if is_profiled and state.global_step == state.max_steps:
                profiler.stop()

    watch = Watch()
    with name_modules() if is_profiled else contextlib.nullcontext():
        try:
            luthier.train(config, callbacks=[watch])
        finally:
            Meter.flops = count  # type: ignore[method-assign]
    value = {"seconds": watch.seconds(0), "useful_flops": watch.useful_flops}
    if is_profiled:
        vocabulary = vocabulary_of(config["model_name_or_path"])
        dtype = torch.bfloat16 if config["bf16"] else torch.float32
        value |= sort_events(profiler.events(), vocabulary, config["lora_rank"], dtype)
    return value


@contextlib.contextmanager
def name_modules() -> Iterator[None]:
    """Has the profiler show which module an operation belongs to."""
    from torch.nn.modules import module as hooks
    from torch.profiler import record_function

    entered: list[Any] = []

    def enter(module: Any, inputs: Any) -> None:
        name = type(module).__name__
        if MODULES.search(name):
            entered.append(record_function(f"nn.Module: {name}"))
            entered[-1].__enter__()

    def leave(module: Any, inputs: Any, output: Any) -> None:
        if MODULES.search(type(module).__name__):
            entered.pop().__exit__(None, None, None)

    handles = (
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def vocabulary_of(folder: str) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder).vocab_size)


def sort_events(events: Any, vocabulary: int, rank: int, dtype: Any) -> dict[str, Any]:
    """Seconds of each kind, what is in the kind of all others, and the rate of the products."""
    busy: Counter[int] = Counter()
    for event in events:
        if MATRIX.match(event.name):
            busy[event.thread] += event.self_cpu_time_total
    thread = busy.most_common(1)[0][0]  # the loop's; others build the next step or wait
    events = [event for event in events if event.thread == thread]
    forward = {
        event.sequence_nr: event
        for event in events
        if event.sequence_nr >= 0 and not any(map(is_backward, frames(event)))
    }
    kinds: Counter[str] = Counter()
    others: Counter[str] = Counter()
    products: Counter[tuple[int, int, int]] = Counter()
    product_flops, product_seconds = 0, 0.0
    for event in events:
        if "::" not in event.name and not event.name.endswith("Backward0"):
            continue  # scopes; what they take themselves is Python
        seconds = event.self_cpu_time_total / 1e6
        kind = kind_of(event, forward, vocabulary, rank)
        kinds[kind] += seconds
        if kind == "other operations":
            others[event.name] += seconds
        shape = product_shape(event)
        if shape is not None:
            products[shape] += 1
            product_flops += flops_of(shape)
            product_seconds += seconds
    return {
        "kinds": dict(kinds),
        "others": dict(others.most_common(6)),
        "rate": measure_rate(products, dtype),
        "product_flops": product_flops,
        "product_seconds": product_seconds,
    }


def frames(event: Any) -> Iterator[str]:
    """The names of what is around an event, its own first."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def is_backward(frame: str) -> bool:
    return frame.startswith("autograd::engine::evaluate_function")


def kind_of(event: Any, forward: dict[int, Any], vocabulary: int, rank: int) -> str:
    """What an operation is for."""
    around = list(frames(event))
    if ATTENTION.search(event.name):
        return "attention products"
    shape = product_shape(event)
    if shape is not None:
        return product_kind(event, shape, around, vocabulary, rank)
    if COPIES.match(event.name):
        return "copies"
    node = next((index for index, frame in enumerate(around) if is_backward(frame)), None)
    if node is not None:
        origin = event
        for _ in range(node):
            origin = origin.cpu_parent
        made_by = forward.get(origin.sequence_nr)
        around = around[: node + 1] + (list(frames(made_by)) if made_by else around[node + 1 :])
    for frame in around:
        for kind, pattern in SCOPES.items():
            if re.search(pattern, frame.removeprefix("autograd::engine::evaluate_function: ")):
                return kind
    return "other operations"


def product_kind(
    event: Any, shape: tuple[int, int, int], around: Sequence[str], vocabulary: int, rank: int
) -> str:
    if vocabulary in shape:
        return "head products"
    node = next((index for index, frame in enumerate(around) if is_backward(frame)), None)
    if node is not None and any(frame.startswith("nn.Module") for frame in around[:node]):
        return RECOMPUTED
    if min(shape) <= 4 * rank:  # several low-rank matrices may stand in one
        return "low-rank products"
    return "attention products" if "bmm" in event.name else "base products"


def product_shape(event: Any) -> tuple[int, int, int] | None:
    """(rows, inner, columns) of a matrix product; batches count as rows."""
    if not MATRIX.match(event.name):
        return None
    first = 1 if "add" in event.name else 0  # what is added to comes first, `out` last
    left, right = event.input_shapes[first : first + 2]
    if len(left) == 3:
        return left[0] * left[1], left[2], right[2]
    return left[0], left[1], right[1]


def flops_of(shape: tuple[int, int, int]) -> int:
    return 2 * shape[0] * shape[1] * shape[2]


def measure_rate(products: Counter[tuple[int, int, int]], dtype: Any) -> float:
    """Operations a second of the same products, alone; the better of two memory layouts."""
    import torch

    flops, seconds = 0, 0.0
    # many micro-batches differ by a few rows; the largest shapes are nearly all of the work
    for shape, count in sorted(products.items(), key=lambda item: -flops_of(item[0]) * item[1]):
        rows, inner, columns = shape
        left = torch.randn(rows, inner).to(dtype)
        layouts = (torch.randn(inner, columns), torch.randn(columns, inner).t())
        best = float("inf")
        for right in (each.to(dtype) for each in layouts):
            for _ in range(3):
                begun = time.perf_counter()
                torch.mm(left, right)
                best = min(best, time.perf_counter() - begun)
        flops += flops_of(shape) * count
        seconds += best * count
    return flops / seconds


if __name__ == "__main__":
    main()
