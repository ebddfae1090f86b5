"""Prompts in, a model's answers out, in the prompts' own order."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from luthier import console
from luthier.checkpoints.files import write_whole
from luthier.errors import OutOfMemory
from luthier.modeling.device import RandomState, is_out_of_memory, release
from luthier.modeling.generation import answering, generation_config, new_token_limit
from luthier.processes.ranks import gather_objects, num_ranks, rank
from luthier.records import IGNORE_INDEX
from luthier.training.metrics import score_texts

if TYPE_CHECKING:
    from luthier.arguments.generating import GeneratingArguments
    from luthier.arguments.record import Arguments

SECONDS_BETWEEN_LINES = 30.0
"""How often a long prediction says how far it is."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of generated_predictions.jsonl."""

    prompt: str
    predict: str
    label: str


def predict_with_generate(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sets: dict[str, datasets.Dataset],
    arguments: Arguments,
    stop_token_ids: Sequence[int],
) -> dict[str, float]:
    """Answers every prompt, writes the answers, and scores them against the labels.

    A single set writes `generated_predictions.jsonl` and gives `predict_...` metrics; each of
    several named ones `generated_predictions_NAME.jsonl` and `predict_NAME_...`.

    Args:
        folder: where the files go.
        model: on its device; all ranks hold the same weights and share the rows.
        tokenizer: fitted to the template.
        sets: columns `input_ids` (prompts) and `labels` (answers), by name, "" for a single one.
        arguments: batch size, beams and generating arguments of the run.
        stop_token_ids: the template's.

    Returns:
        BLEU-4 and ROUGE in percent, and the time it took.
    """
    generating = arguments.generating
    metrics: dict[str, float] = {}
    for name, dataset in sets.items():
        suffix = f"_{name}" if name else ""
        prompts, wanted = list(dataset["input_ids"]), list(dataset["labels"])
        begun = time.monotonic()
        answers = predict(
            model,
            tokenizer,
            prompts,
            generating,
            stop_token_ids,
            batch_size=arguments.training.per_device_eval_batch_size,
            num_beams=arguments.data.eval_num_beams,
            use_cache=arguments.model.use_kv_cache,
        )
        runtime = time.monotonic() - begun
        skip = generating.skip_special_tokens
        texts = (
            tokenizer.batch_decode(prompts),
            _decode(tokenizer, answers, stop_token_ids, skip),
            _decode(tokenizer, wanted, stop_token_ids, skip),
        )
        rows = [Prediction(*row) for row in zip(*texts, strict=True)]
        if console.is_main_process():
            path = write_predictions(folder, rows, suffix)
            console.info(f"{len(rows):,} predictions in {_clock(runtime)}: {path}")
        scores = score_texts(
            _decode(tokenizer, answers, stop_token_ids, True),
            _decode(tokenizer, wanted, stop_token_ids, True),
        )
        scores["runtime"] = round(runtime, 4)
        scores["samples_per_second"] = round(len(rows) / max(runtime, 1e-9), 3)
        metrics |= {f"predict{suffix}_{key}": value for key, value in scores.items()}
    return metrics


def predict(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Sequence[int]],
    generating: GeneratingArguments,
    stop_token_ids: Sequence[int],
    *,
    batch_size: int,
    num_beams: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """The model's answer to each prompt, in the order of the prompts.

    Prompts of like length are answered together, padded on the left; the longest come first, so
    that memory runs out early or not at all. In float32 a greedy answer is the one that the prompt
    gets alone; in half precision the padded width changes the rounding, and two nearly equally
    likely tokens may change places.

    Args:
        model: on its device; its training mode is as before afterwards.
        tokenizer: gives the padding token.
        prompts: token ids.
        generating: how to choose tokens and how many.
        stop_token_ids: tokens that end an answer.
        batch_size: prompts that are answered together.
        num_beams: wins over `generating.num_beams`.
        use_cache: whether keys and values of earlier tokens are kept.

    Returns:
        Token ids, the stop token included when there is one, prompt and padding removed.
    """
    rows = [list(prompt) for prompt in prompts]
    config = generation_config(
        generating, tokenizer, stop_token_ids, num_beams=num_beams, use_cache=use_cache
    )
    limits = [new_token_limit(generating, len(row), model) for row in rows]
    full = limits.count(0)
    if full:
        console.warn(
            f"{full:,} of {len(rows):,} prompts leave no room for an answer and get an empty one. "
            "Raise max_length, or set max_new_tokens."
        )
    batches = list(_batches(rows, limits, batch_size))[rank() :: num_ranks()]
    progress = _Progress(sum(map(len, batches)), len(rows))
    answers: dict[int, list[int]] = {}
    answerer = _Answerer(model, config, batch_size)
    with answering(model), torch.no_grad():
        for batch in batches:
            config.max_new_tokens = limits[batch[0]]
            new = answerer.answer([rows[index] for index in batch])
            answers |= dict(zip(batch, new, strict=True))
            progress.advance(len(batch))
    everyones = gather_objects(answers)
    answers = {index: answer for part in everyones for index, answer in part.items()}
    return [answers.get(index, []) for index in range(len(rows))]


def write_predictions(folder: Path, rows: Iterable[Prediction], suffix: str = "") -> Path:
    """Writes `generated_predictions{suffix}.jsonl`: prompt, predict and label of each row."""
    lines = (
        json.dumps(
            {"prompt": row.prompt, "predict": row.predict, "label": row.label}, ensure_ascii=False
        )
        + "\n"
        for row in rows
    )
    return write_whole(folder / f"generated_predictions{suffix.replace('/', '_')}.jsonl", lines)


def _batches(
    rows: Sequence[Sequence[int]], limits: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Indices of prompts to answer together: like lengths, and the same room for each."""
    order = sorted(
        (index for index, limit in enumerate(limits) if limit),
        key=lambda index: (-limits[index], -len(rows[index])),
    )
    for _, alike in itertools.groupby(order, key=lambda index: limits[index]):
        indices = list(alike)
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


class _Answerer:
    """Answers prompts, fewer together where memory has run out.

    Args:
        model: whose answers are asked for.
        config: how they are chosen; read anew for each batch.
        size: the most prompts that are answered together.
    """

    def __init__(self, model: Any, config: GenerationConfig, size: int) -> None:
        self.model, self.config, self.size = model, config, size

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The answers, in the order of the prompts."""
        answers: list[list[int]] = []
        while len(answers) < len(prompts):
            part = prompts[len(answers) :][: self.size]
            random = RandomState.take(self.model.device)
            try:
                answers += _answer_batch(self.model, part, self.config)
                continue
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
                said = str(problem).partition("\n")[0]
            release(self.model.device)
            self._lower(part, said)
            random.restore()
        return answers

    def _lower(self, part: Sequence[Sequence[int]], said: str) -> None:
        width = max(map(len, part))
        asked = f"{len(part):,} prompts of up to {width:,} tokens"
        where = f"memory has run out while {asked} were answered"
        if len(part) == 1:
            raise OutOfMemory(
                f"{where}. {said}\nLower max_new_tokens ({self.config.max_new_tokens:,} now), "
                "cutoff_len or num_beams, or set per_device_eval_batch_size: 1."
            )
        self.size = len(part) // 2
        console.warn(f"{where}; from here on {self.size:,} at a time.", on_every_rank=True)


def _answer_batch(
    model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> list[list[int]]:
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), config.pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    sequences = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=config,
    )
    stops = config.eos_token_id
    stop_token_ids = set(stops if isinstance(stops, list) else [stops])
    return [_up_to_stop(new, stop_token_ids) for new in sequences[:, width:].tolist()]


def _up_to_stop(token_ids: list[int], stop_token_ids: set[int]) -> list[int]:
    for position, token_id in enumerate(token_ids):
        if token_id in stop_token_ids:
            return token_ids[: position + 1]
    return token_ids


def _decode(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Sequence[int]],
    stop_token_ids: Sequence[int],
    skip_special_tokens: bool,
) -> list[str]:
    """Texts of answers; a stop word that is no special token goes with the special ones."""
    hidden = {IGNORE_INDEX, *(stop_token_ids if skip_special_tokens else ())}
    kept = [[token_id for token_id in row if token_id not in hidden] for row in rows]
    return list(tokenizer.batch_decode(kept, skip_special_tokens=skip_special_tokens))


class _Progress:
    """Says now and then how many rows are answered and how long the rest will take."""

    def __init__(self, num_own: int, num_rows: int) -> None:
        self._num_own, self._num_rows, self._done = num_own, num_rows, 0
        self._begun = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES or self._done == self._num_own:
            return
        self._said = now
        share = self._done / self._num_own
        left = (now - self._begun) * (1 - share) / share
        console.info(
            f"predicted {int(share * self._num_rows):,} of {self._num_rows:,} rows, "
            f"{_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
