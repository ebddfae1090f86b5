"""New tokens a second and memory of luthier's generator, and of three other ways to answer.

64 prompts of 20 to 300 random tokens want 8 to 128 tokens each, the likeliest ones, without stops.
One by one and in padded batches (of 8, in the order they come, each waiting for its longest answer)
are transformers' `generate`; continuous batching is its `generate_batch`. Every way runs in a
process of its own, in turns; how many answers equal those given alone stands beside it.

    python benchmarks/generate.py --dtypes float32 --pairs 3
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

WAYS = {
    "luthier": "luthier",
    "alone": "one by one",
    "padded": "padded batches",
    "continuous": "continuous batching",
}

BATCH = 8


def main(words: list[str] | None = None) -> None:
    """Runs all ways, prints the ratios, keeps the rows."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    models = material.each_model(options.models, options.dtypes, options.smollm2, options.threads)
    for model, dtype, folder in models:
        outcomes: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
        settings = {"folder": folder, "count": options.prompts}
        for _, way in sides.turns(options.ways, options.pairs):
            said = {"way": way, **settings}
            outcomes[way].append(sides.run("generate:run", said, options.threads).value)
        clock = "cpu" if options.cpu_time else "wall"
        speeds = {
            way: [each["tokens"] / each[clock] for each in values]
            for way, values in outcomes.items()
        }
        expected = outcomes.get("alone", [{}])[-1].get("answers", [])
        for way, values in outcomes.items():
            ours = figures.ratios(speeds["luthier"], speeds[way])
            speed = figures.Spread.of(speeds[way])
            equal = sum(map(list.__eq__, values[-1]["answers"], expected))
            peak = [each["memory"]["peak"] - each["memory"]["before"] for each in values]
            mib = round(figures.Spread.of(peak).median / 2**20)
            print(
                f"{model}, {dtype}, {WAYS[way]}: {speed} tokens/s, {mib:,} MiB; luthier is {ours}x "
                f"of it; {equal} of {options.prompts} answers are those given alone",
                flush=True,
            )
            table.add(
                {
                    "model": model,
                    "dtype": dtype,
                    "way": WAYS[way],
                    "clock": clock,
                    "prompts": options.prompts,
                    "pairs": options.pairs,
                    "threads": options.threads,
                    "tokens_per_s": round(speed.median, 2),
                    "mib": mib,
                    "equal": equal,
                    **ours.columns("ratio"),
                }
            )
    table.draw(
        "new tokens a second: luthier over other ways",
        lambda row: f"{row['model']} {row['dtype']} {row['way']}",
        "ratio",
        is_shown=lambda row: row["way"] != "luthier",
        line=1.0,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2"], help="also: qwen2, tiny")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3, help="runs of every way")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    figures.add_options(parser, __file__)
    options = parser.parse_args(words)
    if "luthier" not in options.ways:
        parser.error("--ways: luthier is what the others are compared with")
    return options


def run(way: str, folder: str, count: int) -> dict[str, Any]:
    """Answers all prompts one way, in a process of its own; loading is not timed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.peers import Memory

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts, limits = make_prompts(count, min(model.config.vocab_size, len(tokenizer)))
    answer = {"alone": alone, "padded": padded, "continuous": continuous, "luthier": luthier}[way]
    with torch.no_grad():
        answer(model, tokenizer, prompts[:2], [4, 4])
        memory = Memory()
        memory.start()
        wall, cpu = time.perf_counter(), time.process_time()
        answers = answer(model, tokenizer, prompts, limits)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory.stop()
    assert [*map(len, answers)] == limits
    return {
        "answers": answers,
        "tokens": sum(limits),
        "wall": wall,
        "cpu": cpu,
        "memory": memory.value(),
    }


def make_prompts(count: int, vocabulary: int) -> tuple[list[list[int]], list[int]]:
    """Prompts, and how many tokens each answer has."""
    import torch

    drawn = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 301, (count,), generator=drawn).tolist()
    limits = torch.randint(8, 129, (count,), generator=drawn).tolist()
    least = min(100, vocabulary // 2)  # special tokens stand before
    prompts = [torch.randint(least, vocabulary, (n,), generator=drawn).tolist() for n in lengths]
    return prompts, limits


def alone(model: Any, tokenizer: Any, prompts: Any, limits: Any) -> list[list[int]]:
    """A call of `generate` for each prompt."""
    return [
        padded(model, tokenizer, [prompt], [limit])[0]
        for prompt, limit in zip(prompts, limits, strict=True)
    ]


def padded(model: Any, tokenizer: Any, prompts: Any, limits: Any) -> list[list[int]]:
    """A call for eight prompts, padded to the longest, for as many tokens as one of them wants."""
    import torch

    answers: list[list[int]] = []
    for at in range(0, len(prompts), BATCH):
        batch, wanted = prompts[at : at + BATCH], limits[at : at + BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(each)) + each for each in batch])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in batch])
        most = max(wanted)
        new = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=most,
            min_new_tokens=most,
            eos_token_id=None,
            pad_token_id=0,
        )[:, width:].tolist()
        answers += [each[:limit] for each, limit in zip(new, wanted, strict=True)]
    return answers


def continuous(model: Any, tokenizer: Any, prompts: Any, limits: Any) -> list[list[int]]:
    """Transformers' own scheduler over paged keys and values, 16 prompts at a time."""
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    # the cache takes blocks of 256 tokens from a share of all memory, unless it is told
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=128)
    paged = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512)
    manager = model.init_continuous_batching(
        generation_config=config, continuous_batching_config=paged
    )
    manager.start()
    names = [
        manager.add_request(prompt, max_new_tokens=limit)
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    found: dict[str, list[int]] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
    manager.stop(block=True)
    return [found[name] for name in names]


def luthier(model: Any, tokenizer: Any, prompts: Any, limits: Any) -> list[list[int]]:
    """The generator of chat, prediction and the API."""
    from luthier.generating.generator import Generator
    from luthier.generating.request import Request, Sampling

    requests = [
        Request(prompt, Sampling(max_new_tokens=limit))
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    found = dict(Generator(model, tokenizer).answer(requests))
    return [found[n].token_ids for n in range(len(requests))]


if __name__ == "__main__":
    main()
