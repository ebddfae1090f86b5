"""Answers to a data set's prompts, written beside what was wanted, and scored."""

from __future__ import annotations

import hashlib
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
from luthier.generating.journal import Journal, hash_of_weights
from luthier.generating.request import Request, Sampling
from luthier.processes.ranks import gather_objects, num_ranks, rank
from luthier.records import IGNORE_INDEX
from luthier.training.scores import score_texts

TOLD_EVERY_S = 30.0
"""How often a prediction says how far it has come."""

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
    several named ones `generated_predictions_NAME.jsonl` and `predict_NAME_...`: exact matches,
    BLEU-4 and ROUGE in percent, what `metric` gives, and the time it took. All ranks hold the same
    weights and share the rows. Answers are written down as they get done, and a prediction that was
    killed goes on behind them; see `generating/journal.py`.
    """
    asking = Asking(model, tokenizer, arguments, stop_token_ids)
    skip = arguments.generating.skip_special_tokens
    metrics: dict[str, float] = {}
    for name, prompted in sets.items():
        suffix = f"_{name}" if name else ""
        examples = prompted.take(min(len(prompted), arguments.training.limit or len(prompted)))
        prompts = [each.input_ids.tolist() for each in examples]
        wanted = [each.labels.tolist() for each in examples]
        path = predictions_file(folder, suffix)
        journal = Journal(path, asking.identity(prompts))
        begun = time.monotonic()
        answers = asking.answers(prompts, journal)
        runtime = time.monotonic() - begun
        if console.is_main_process():
            answered = [[asking.decode(each, skip=skip) for each in row] for row in answers]
            texts = (
                tokenizer.batch_decode(prompts),
                [row[0] if len(row) == 1 else row for row in answered],
                [asking.decode(each, skip=skip) for each in wanted],
            )
            names = ("prompt", "predict", "label")
            rows = (dict(zip(names, row, strict=True)) for row in zip(*texts, strict=True))
            write_predictions(folder, rows, suffix)
            lasted = timedelta(seconds=round(runtime))
            console.info(f"{len(prompts):,} predictions in {lasted}: {path}")
        journal.end()
        scores = score_texts(
            [asking.decode(each, skip=True) for row in answers for each in row],
            [asking.decode(each, skip=True) for each in wanted for _ in range(asking.num_each)],
            arguments.training.metric,
        )
        scores |= speed(len(prompts), runtime)
        metrics |= {f"predict{suffix}_{key}": value for key, value in scores.items()}
    return metrics


class Asking:
    """How a run asks its model: by the generating arguments, each answer with a seed of its own."""

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        arguments: Arguments,
        stop_token_ids: Sequence[int],
    ) -> None:
        generating, beams = arguments.generating, arguments.data.eval_num_beams
        if beams is not None:
            generating = generating.model_copy(update={"num_beams": beams})
        self.tokenizer, self.generating = tokenizer, generating
        self.stop_token_ids = list(stop_token_ids) or [tokenizer.eos_token_id]
        self.seed, self.num_each = arguments.training.seed, generating.num_return_sequences
        self.generator = Generator(
            model,
            tokenizer,
            use_cache=arguments.model.use_kv_cache,
            batch_size=arguments.training.per_device_eval_batch_size,
        )

    def identity(self, prompts: Sequence[Sequence[int]]) -> dict[str, str]:
        """What the answers depend on."""
        settings = {**self.generating.model_dump(mode="json"), "seed": self.seed}
        settings.pop("skip_special_tokens")
        told = [settings, self.stop_token_ids]
        return {
            "prompts": _hash(prompts),
            "weights": hash_of_weights(self.generator.model),
            "settings": _hash(told),
        }

    def answers(
        self, prompts: Sequence[Sequence[int]], journal: Journal | None = None
    ) -> list[list[list[int]]]:
        """The token ids of `num_each` answers to each prompt; ranks share them, the longest first.

        What `journal` knows is not asked again.
        """
        known = {} if journal is None else journal.begin()
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        missing = [
            key
            for row in order
            for key in ((row, number) for number in range(self.num_each))
            if key not in known
        ]
        own = missing[rank() :: num_ranks()]
        requests = [self._request(prompts[row], row, number) for row, number in own]
        found, told = {}, time.monotonic()
        for n, answer in self.generator.answer(requests):
            found[own[n]] = answer.token_ids
            if journal is not None:
                journal.write(*own[n], answer.token_ids)
            if journal is not None and time.monotonic() - told > TOLD_EVERY_S:
                told = time.monotonic()
                console.info(f"{len(found):,} of {len(own):,} answers are done")
        known |= {key: ids for part in gather_objects(found) for key, ids in part.items()}
        return [
            [known[row, number] for number in range(self.num_each)] for row in range(len(prompts))
        ]

    def _request(self, prompt: Sequence[int], row: int, number: int) -> Request:
        limit = new_token_limit(self.generating, len(prompt), self.generator.model)
        seed = int(_hash([self.seed, row, number])[:15], 16)
        sampling = Sampling.of(self.generating, max_new_tokens=limit, seed=seed)
        return Request(prompt, sampling, self.stop_token_ids)

    def decode(self, token_ids: Sequence[int], *, skip: bool) -> str:
        """The text; a stop word that is no special token goes with the special ones."""
        hidden = {IGNORE_INDEX, *(self.stop_token_ids if skip else ())}
        kept = [each for each in token_ids if each not in hidden]
        return str(self.tokenizer.decode(kept, skip_special_tokens=skip))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    return write_whole(predictions_file(folder, suffix), lines)


def predictions_file(folder: Path, suffix: str) -> Path:
    """Where the predictions of a set stand."""
    return folder / f"generated_predictions{suffix.replace('/', '_')}.jsonl"


def speed(count: int, runtime: float) -> dict[str, float]:
    """The time that so many rows took, in seconds, and rows a second."""
    return {
        "runtime": round(runtime, 4),
        "samples_per_second": round(count / max(runtime, 1e-9), 3),
    }
