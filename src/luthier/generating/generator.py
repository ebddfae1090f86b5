"""Prompts -> a model's answers: many together in the prompts' order, or one as it comes."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from luthier import console
from luthier.arguments.generating import GeneratingArguments
from luthier.errors import OutOfMemory
from luthier.modeling.device import RandomState, is_out_of_memory, release
from luthier.modeling.dtypes import autocasting
from luthier.processes.ranks import gather_objects, num_ranks, rank

SECONDS_BETWEEN_LINES = 30.0
"""How often a long prediction says how far it is."""


@dataclass(frozen=True)
class Generator:
    """Answers of a model as token ids, the stop token included when there is one."""

    model: Any  # on its device; its training mode is as before after every answer
    tokenizer: PreTrainedTokenizerBase  # fitted to the template; gives the padding token
    stop_token_ids: Sequence[int]  # tokens that end an answer; the tokenizer's EOS when empty
    use_cache: bool = True  # whether keys and values of earlier tokens are kept (`use_kv_cache`)

    def answer(
        self,
        prompts: Iterable[Sequence[int]],
        generating: GeneratingArguments,
        *,
        batch_size: int,
        num_beams: int | None = None,
    ) -> list[list[int]]:
        """The answer to each prompt, in the order of the prompts; ranks share them.

        Prompts of like length are answered together, padded on the left; the longest come first, so
        that memory runs out early or not at all. In float32 a greedy answer is the one that the
        prompt gets alone; in half precision the padded width changes the rounding, and two nearly
        equally likely tokens may change places.

        Args:
            prompts: token ids.
            generating: how to choose tokens and how many.
            batch_size: prompts that are answered together; fewer where memory has run out.
            num_beams: wins over `generating.num_beams` (`eval_num_beams`).

        Raises:
            OutOfMemory: if memory is too small for a single prompt.
        """
        rows = [list(prompt) for prompt in prompts]
        limits = [new_token_limit(generating, len(row), self.model) for row in rows]
        full = limits.count(0)
        if full:
            console.warn(
                f"{full:,} of {len(rows):,} prompts leave no room for an answer and get an empty "
                "one. Raise max_length, or set max_new_tokens."
            )
        order = sorted(
            (index for index, limit in enumerate(limits) if limit),
            key=lambda index: (-limits[index], -len(rows[index])),
        )
        batches: list[list[int]] = []  # of like lengths, and the same room for each
        for _, alike in itertools.groupby(order, key=lambda index: limits[index]):
            indices = list(alike)
            batches += [
                indices[start : start + batch_size] for start in range(0, len(indices), batch_size)
            ]
        batches = batches[rank() :: num_ranks()]

        config = self._config(generating, num_beams)
        answers: dict[int, list[int]] = {}
        num_own = sum(map(len, batches))
        begun = said = time.monotonic()
        with answering(self.model), torch.no_grad():
            for batch in batches:
                config.max_new_tokens = limits[batch[0]]
                new, batch_size = self._answer_batch(
                    [rows[index] for index in batch], config, batch_size
                )
                answers |= dict(zip(batch, new, strict=True))
                now = time.monotonic()
                if now - said >= SECONDS_BETWEEN_LINES and len(answers) < num_own:
                    said, share = now, len(answers) / num_own
                    left = timedelta(seconds=round((now - begun) * (1 - share) / share))
                    console.info(
                        f"predicted {int(share * len(rows)):,} of {len(rows):,} rows, {left} left"
                    )
        for part in gather_objects(answers):
            answers |= part
        return [answers.get(index, []) for index in range(len(rows))]

    def stream(
        self, prompt: Sequence[int], generating: GeneratingArguments
    ) -> abc.Generator[int, None, None]:
        """The tokens of one answer as the model makes them; closing the iterator stops it.

        Beam search knows its answer only at the end. `new_token_limit` leaves room for an answer.
        """
        config = self._config(generating)
        config.max_new_tokens = new_token_limit(generating, len(prompt), self.model)
        tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def is_stopped(input_ids: Tensor, scores: Tensor | None, **others: Any) -> Tensor:
            return torch.full((len(input_ids),), stopped.is_set(), device=input_ids.device)

        def generate() -> None:
            try:
                has_beams = config.num_beams > 1
                streamer = None if has_beams else _Tap(tokens.put)
                with answering(self.model), torch.no_grad():
                    (new,) = self._generate(
                        [prompt], config, streamer=streamer, stopping_criteria=[is_stopped]
                    )
                for token_id in new if has_beams else ():
                    tokens.put(token_id)
            except BaseException as problem:  # raised again where the tokens are read
                tokens.put(problem)
            tokens.put(None)

        thread = threading.Thread(target=generate, daemon=True, name="luthier-generate")
        thread.start()
        try:
            while (item := tokens.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _config(
        self, generating: GeneratingArguments, num_beams: int | None = None
    ) -> GenerationConfig:
        """The generating arguments as transformers takes them, all but the length.

        Every value is stated, because `generate` fills what is left open from the model's own
        `generation_config.json`.
        """
        beams = generating.num_beams if num_beams is None else num_beams
        sampling = generating.do_sample
        return GenerationConfig(
            do_sample=sampling,
            temperature=generating.temperature if sampling else 1.0,
            top_p=generating.top_p if sampling else 1.0,
            top_k=max(generating.top_k, 0) if sampling else 50,
            num_beams=beams,
            length_penalty=generating.length_penalty if beams > 1 else 1.0,
            early_stopping=False,
            repetition_penalty=generating.repetition_penalty,
            eos_token_id=list(self.stop_token_ids) or self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=self.use_cache,
        )

    def _answer_batch(
        self, prompts: list[list[int]], config: GenerationConfig, size: int
    ) -> tuple[list[list[int]], int]:
        """The answers, and how many prompts memory is known to hold together."""
        stops = config.eos_token_id
        stop_token_ids = set(stops if isinstance(stops, list) else [stops])
        answers: list[list[int]] = []
        while len(answers) < len(prompts):
            part = prompts[len(answers) :][:size]
            random = RandomState.take(self.model.device)
            try:
                for new in self._generate(part, config):
                    end = next((i for i, token in enumerate(new) if token in stop_token_ids), None)
                    answers.append(new if end is None else new[: end + 1])
                continue
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
                said = str(problem).partition("\n")[0]
            release(self.model.device)
            where = (
                f"memory has run out while {len(part):,} prompts of up to "
                f"{max(map(len, part)):,} tokens were answered"
            )
            if len(part) == 1:
                raise OutOfMemory(
                    f"{where}. {said}\nLower max_new_tokens ({config.max_new_tokens:,} now), "
                    "cutoff_len or num_beams, or set per_device_eval_batch_size: 1."
                )
            size = len(part) // 2
            console.warn(f"{where}; from here on {size:,} at a time.", on_every_rank=True)
            random.restore()
        return answers, size

    def _generate(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, **options: Any
    ) -> list[list[int]]:
        width = max(map(len, prompts))
        input_ids = torch.full((len(prompts), width), config.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, width - len(prompt) :] = 1
        sequences = self.model.generate(
            input_ids=input_ids.to(self.model.device),
            attention_mask=attention_mask.to(self.model.device),
            generation_config=config,
            **options,
        )
        new: list[list[int]] = sequences[:, width:].tolist()
        return new


def new_token_limit(generating: GeneratingArguments, prompt_length: int, model: Any) -> int:
    """How many tokens an answer to one prompt may have; none when the prompt leaves no room.

    `max_new_tokens` when it is above zero, else what `max_length` leaves; in both cases not more
    than what the model's positions leave.
    """
    wanted = generating.max_new_tokens
    if wanted <= 0:
        wanted = generating.max_length - prompt_length
    context = context_length(model)
    return max(wanted if context is None else min(wanted, context - prompt_length), 0)


def context_length(model: Any) -> int | None:
    """How many positions a model knows; None for those without a bound."""
    known: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return known


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """Turns dropout and gradient checkpointing off inside, and each module back afterwards.

    A model that was trained in mixed precision computes in it. Layers recompute activations only
    while they are in training mode, so `eval` is enough to let them keep keys and values.
    """
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with autocasting(model):
            yield
    finally:
        for module in in_training:
            module.training = True


class _Tap(BaseStreamer):
    """Hands each new token on; the first tensor is the prompt."""

    def __init__(self, hand_on: Callable[[int], None]) -> None:
        self._hand_on = hand_on
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        if not self._is_prompt:
            for token_id in value.flatten().tolist():
                self._hand_on(token_id)
        self._is_prompt = False

    def end(self) -> None:
        pass
