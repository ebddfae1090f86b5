"""Answers to a data set's prompts, written beside what was wanted, and scored."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from luthier import console
from luthier.arguments.record import Arguments
from luthier.checkpoints.files import write_whole
from luthier.example import ExampleSet
from luthier.generating.generator import Generator, new_token_limit
from luthier.generating.request import Request, Sampling
from luthier.processes.ranks import gather_objects, num_ranks, rank
from luthier.records import IGNORE_INDEX
from luthier.training.scores import score_texts

NAMES = {1: ("score",), 2: ("chosen", "rejected")}
"""What the scores of a row are called, by how many there are."""


def predict_with_generate(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sets: dict[str, ExampleSet],
    arguments: Arguments,
    stop_token_ids: Sequence[int],
) -> dict[str, float]:
    """Answers every prompt, writes the answers, and scores them against the labels.

    A single set writes `generated_predictions.jsonl` and gives `predict_...` metrics; each of
    several named ones `generated_predictions_NAME.jsonl` and `predict_NAME_...`: BLEU-4 and ROUGE
    in percent, and the time it took. All ranks hold the same weights and share the rows.
    """
    generator = Generator(
        model,
        tokenizer,
        use_cache=arguments.model.use_kv_cache,
        batch_size=arguments.training.per_device_eval_batch_size,
    )

    def decode(rows: Iterable[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        # a stop word that is no special token goes with the special ones
        hidden = {IGNORE_INDEX, *(stop_token_ids if skip_special_tokens else ())}
        kept = [[token_id for token_id in row if token_id not in hidden] for row in rows]
        return list(tokenizer.batch_decode(kept, skip_special_tokens=skip_special_tokens))

    skip = arguments.generating.skip_special_tokens
    metrics: dict[str, float] = {}
    for name, prompted in sets.items():
        suffix = f"_{name}" if name else ""
        examples = prompted.take(len(prompted))
        prompts = [each.input_ids.tolist() for each in examples]
        wanted = [each.labels.tolist() for each in examples]
        begun = time.monotonic()
        answers = _answers(generator, prompts, arguments, stop_token_ids)
        runtime = time.monotonic() - begun
        if console.is_main_process():
            texts = (
                tokenizer.batch_decode(prompts),
                decode(answers, skip_special_tokens=skip),
                decode(wanted, skip_special_tokens=skip),
            )
            names = ("prompt", "predict", "label")
            rows = (dict(zip(names, row, strict=True)) for row in zip(*texts, strict=True))
            path = write_predictions(folder, rows, suffix)
            lasted = timedelta(seconds=round(runtime))
            console.info(f"{len(prompts):,} predictions in {lasted}: {path}")
        scores = score_texts(
            decode(answers, skip_special_tokens=True), decode(wanted, skip_special_tokens=True)
        )
        scores |= speed(len(prompts), runtime)
        metrics |= {f"predict{suffix}_{key}": value for key, value in scores.items()}
    return metrics


def _answers(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    arguments: Arguments,
    stop_token_ids: Sequence[int],
) -> list[list[int]]:
    """The answer to each prompt; ranks share them."""
    generating, beams = arguments.generating, arguments.data.eval_num_beams
    if beams is not None:
        generating = generating.model_copy(update={"num_beams": beams})
    requests = [
        Request(
            prompt,
            Sampling.of(
                generating,
                max_new_tokens=new_token_limit(generating, len(prompt), generator.model),
            ),
            stop_token_ids or [generator.tokenizer.eos_token_id],
        )
        for prompt in prompts
    ]
    order = sorted(range(len(requests)), key=lambda n: -len(requests[n].prompt))
    own = order[rank() :: num_ranks()]
    found = {own[n]: answer.token_ids for n, answer in generator.answer([requests[n] for n in own])}
    answers = {n: ids for part in gather_objects(found) for n, ids in part.items()}
    return [answers[n] for n in range(len(requests))]


def predict_scores(
    folder: Path,
    sets: Mapping[str, ExampleSet],
    score: Callable[[ExampleSet], list[list[float]]],
) -> dict[str, float]:
    """Scores the answers of every row by a reward model, files and names as above.

    A line holds `chosen` and `rejected`, or `score` where there is one answer, as the model says
    them, and `origin`, in the order of the rows. The metrics are the mean score, of pairs their
    accuracy and margin, and the time it took. All ranks call `score`.
    """
    metrics: dict[str, float] = {}
    for name, dataset in sets.items():
        begun = time.monotonic()
        scores = score(dataset)
        runtime = time.monotonic() - begun
        rows = [
            dict(zip(NAMES[len(each)], each, strict=True)) | {"origin": origin}
            for each, origin in zip(scores, dataset.origins(range(len(dataset))), strict=True)
        ]
        suffix = f"_{name}" if name else ""
        if console.is_main_process():
            path = write_predictions(folder, rows, suffix)
            console.info(f"{len(rows):,} rows scored in {runtime:.1f} s: {path}")
        ahead = [each[0] - each[1] for each in scores if len(each) == 2]
        means = {"mean_reward": fmean(one for each in scores for one in each)}
        if ahead:
            means |= {"accuracy": fmean(one > 0 for one in ahead), "margin": fmean(ahead)}
        means |= speed(len(rows), runtime)
        metrics |= {f"predict{suffix}_{key}": value for key, value in means.items()}
    return metrics


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]], suffix: str = "") -> Path:
    """Writes `generated_predictions{suffix}.jsonl`, a line for each row."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write_whole(folder / f"generated_predictions{suffix.replace('/', '_')}.jsonl", lines)


def speed(count: int, runtime: float) -> dict[str, float]:
    """The time that so many rows took, in seconds, and rows a second."""
    return {
        "runtime": round(runtime, 4),
        "samples_per_second": round(count / max(runtime, 1e-9), 3),
    }
