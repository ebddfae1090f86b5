"""Requests -> answers: many at once as memory allows, each as if it were alone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GenerationConfig, PreTrainedTokenizerBase

from luthier import console
from luthier.arguments.generating import GeneratingArguments
from luthier.errors import LuthierError, ModelError, OutOfMemory
from luthier.generating.batches import RunningBatch, generate_padded
from luthier.generating.request import BARE, Answer, Answering, Request, Token
from luthier.generating.row import Row
from luthier.generating.row_cache import sliding_windows
from luthier.modeling.device import free_memory, is_out_of_memory, release
from luthier.modeling.dtypes import autocasting

MAX_ROWS = {"cpu": 64}
"""The most answers at once by kind of device; 256 on others."""

USABLE = 0.5
"""The share of the free memory that keys and values may fill."""


NO_TOKEN = 2**31 - 1
"""An id that no vocabulary has."""


class Generator:
    """Answers of a model, each by its own settings, seed, stops and adapter.

    Sampled answers depend on their own seed, greedy ones on nothing; in float32 both are what the
    request gets alone. In half precision the number of rows changes the rounding, and two nearly
    equally likely tokens may change places.

    Where each layer of the model is plain attention, a finished answer gives its place to the next
    request. Models that carry another state along a sequence, and beams, are answered in batches
    that `generate` of transformers pads; which it is, is said once.

    Args:
        model: on its device; its training mode and its adapters are as before after every answer.
        tokenizer: fitted to the template; gives the padding token, decodes for stop strings.
        use_cache: whether keys and values of earlier tokens are kept (`use_kv_cache`).
        max_rows: the most answers at once; by default `MAX_ROWS`, and what memory allows.
        batch_size: how many are padded together where places are not given on.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        use_cache: bool = True,
        max_rows: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self.model, self.tokenizer, self.use_cache = model, tokenizer, use_cache
        self.max_rows = max_rows or MAX_ROWS.get(model.device.type, 256)
        self.batch_size = batch_size
        found = sliding_windows(model) if use_cache else "use_kv_cache is false"
        self.windows = None if isinstance(found, str) else found
        """The sliding window of each layer, None where it has none; None for other models."""
        self._reason = found if isinstance(found, str) else ""
        self._is_told = False
        self._busy = threading.Lock()  # held while the model computes answers
        self._guard = threading.Lock()  # of the two below
        self._submitted: list[Row] = []
        self._worker: threading.Thread | None = None

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Every request's number and answer, as they get done; the longest begin first.

        Nothing else may use the model until the iterator ended, or was closed.

        Raises:
            OutOfMemory: if memory is too small for a single request.
            NonFiniteError: if the model gives no number.
        """
        rows = [self._row(Answering(request), n) for n, request in enumerate(requests)]
        rows.sort(key=lambda row: -row.most)
        with self._busy:
            with self._running() as run:
                done = run.add(rows)
                while done or run.is_going:
                    for row in done:
                        if isinstance(row.end, LuthierError):
                            raise row.end
                        assert row.end is not None
                        yield row.index, row.end
                    done = run.step()

    def submit(
        self,
        request: Request,
        hear: Callable[[Token | Answer | BaseException], None] | None = None,
    ) -> Answering:
        """Begins an answer beside those that are being made; any thread may call it.

        For `hear` see `Answering`. A worker's thread computes while there is anything to answer.
        """
        answering = Answering(request, hear)
        row = self._row(answering, 0)
        with self._guard:
            self._submitted.append(row)
            if self._worker is None:
                # a daemon would be torn out of torch when the program ends, which aborts it
                self._worker = threading.Thread(target=self._work, name="luthier-generate")
                self._worker.start()
        return answering

    def _row(self, answering: Answering, index: int) -> Row:
        request = answering.request
        known = getattr(self.model, "peft_config", {})
        if request.adapter and request.adapter not in known:
            names = ", ".join(known) or "none"
            raise ModelError(f"there is no adapter {request.adapter!r}. Known: {names}.")
        context = context_length(self.model)
        limit = request.sampling.max_new_tokens
        if context is not None:
            limit = min(limit, context - len(request.prompt))
        return Row(answering, index, limit, self.tokenizer)

    def _work(self) -> None:
        try:
            with self._busy:
                with self._running() as run:
                    while self._take_up(run):
                        if not threading.main_thread().is_alive():
                            raise RuntimeError("the program ends")
                        run.step()
        except BaseException as problem:  # raised again where the answers are read
            with self._guard:
                waiting, self._submitted = self._submitted, []
                self._worker = None
            for row in waiting:
                row.answering.end(problem)

    @contextmanager
    def _running(self) -> Iterator[_Run]:
        """Answers in the making; afterwards the model is as before, and nobody waits."""
        run = _Run(self)
        try:
            with evaluating(self.model):
                yield run
        except BaseException as problem:
            for row in run.rows:
                if row.end is None:
                    row.answering.end(problem)
            raise
        finally:
            run.end()

    def _take_up(self, run: _Run) -> bool:
        """Gives a run what was submitted; without anything to do the worker ends."""
        with self._guard:
            new, self._submitted = self._submitted, []
            if not new and not run.is_going:
                self._worker = None
                return False
        run.add(new)
        return True

    def tell(self, windows: Sequence[int | None] | None) -> None:
        """Says once how answers are made."""
        if self._is_told:
            return
        self._is_told = True
        if windows is None:
            why = self._reason or "beams are searched by transformers' generate"
            console.info(
                f"answers: {self.batch_size} at a time in padded batches, since {why}; a batch "
                "waits for its longest answer"
            )
        else:
            console.info(
                f"answers: up to {self.max_rows} at a time as memory allows; a finished one gives "
                "its place to the next prompt"
            )


class _Run:
    """Answers that are being made: those that wait, and a batch for each adapter."""

    def __init__(self, generator: Generator) -> None:
        self._generator, self._model = generator, generator.model
        self.rows: list[Row] = []  # those that have not ended, in the order in which they came
        self._waiting: deque[Row] = deque()  # those of them that have not begun
        self._batches: dict[str | None, RunningBatch] = {}
        self._max_rows, self._batch_size = generator.max_rows, generator.batch_size
        free = free_memory(generator.model.device)
        self._bytes = None if free is None else int(free * USABLE)
        self._autocast = autocasting(generator.model)
        self._adapters = _Adapters(generator.model)
        self._bytes_per_token = 0

    @property
    def is_going(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self.rows)

    def end(self) -> None:
        """Gives the model its adapters back."""
        self._adapters.restore()

    def add(self, rows: Sequence[Row]) -> list[Row]:
        """Has rows wait for their turn; gives those that end at once, for want of room."""
        for row in rows:
            if row.limit <= 0:
                row.finish("length")
        going = [row for row in rows if row.end is None]
        self.rows += going
        self._waiting.extend(going)
        return [row for row in rows if row.end is not None]

    def step(self) -> list[Row]:
        """A token for every row that has its place, or a padded batch; gives what has ended."""
        before = self.rows
        for row in before:
            if row.answering.is_cancelled:
                row.finish("cancelled")
        self._waiting = deque(row for row in self._waiting if row.end is None)
        with torch.no_grad(), self._autocast:
            padded = self._next_padded()
            if padded:
                self._pad(padded)
            else:
                self._admit()
                for adapter, batch in [*self._batches.items()]:
                    if batch.rows and adapter in self._batches:
                        count = sum(len(each.rows) for each in self._batches.values())
                        self._guarded(adapter, batch.step, count)
        self.rows = [row for row in before if row.end is None]
        return [row for row in before if row.end is not None]

    def _admit(self) -> None:
        """Lets rows begin that wait, in their order, while there is room.

        What a token takes is known once a first row was read.
        """
        generator, joining = self._generator, dict[str | None, list[Row]]()
        count = sum(row.end is None for batch in self._batches.values() for row in batch.rows)
        while self._waiting and count < self._max_rows and not self._is_padded(self._waiting[0]):
            adapter = self._waiting[0].request.adapter
            if adapter not in self._batches:
                assert generator.windows is not None
                pad = generator.tokenizer.pad_token_id or 0
                self._batches[adapter] = RunningBatch(self._model, generator.windows, pad)
                generator.tell(generator.windows)
            others = joining.setdefault(adapter, [])
            others.append(self._waiting[0])
            if count and not self._has_room(joining):
                others.pop()
                break
            self._waiting.popleft()
            count += 1
        for adapter, rows in joining.items():
            if rows and adapter in self._batches:  # all are gone where memory ran out
                batch = self._batches[adapter]
                self._guarded(adapter, partial(batch.admit, rows), count)
        self._bytes_per_token = max(
            (each.bytes_per_token for each in self._batches.values()), default=0
        )

    def _has_room(self, joining: Mapping[str | None, Sequence[Row]]) -> bool:
        if self._bytes is None:
            return True
        room = sum(batch.room(joining.get(name, ())) for name, batch in self._batches.items())
        return 0 < room * self._bytes_per_token <= self._bytes

    def _guarded(self, adapter: str | None, compute: Callable[[], None], count: int) -> None:
        """Computes with an adapter; where memory runs out all rows begin again, half as many."""
        try:
            self._adapters.use(adapter)
            compute()
            return
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            said = str(problem).partition("\n")[0]
        self._batches.clear()
        release(self._model.device)
        self._max_rows = max(count // 2, 1)
        self._begin_again(count, self._max_rows, said)

    def _is_padded(self, row: Row) -> bool:
        return self._generator.windows is None or row.request.sampling.num_beams > 1

    def _next_padded(self) -> list[Row]:
        """Rows that `generate` answers together, once no other has begun."""
        if any(batch.rows for batch in self._batches.values()):
            return []
        if not self._waiting or not self._is_padded(self._waiting[0]):
            return []
        kind = _kind(self._waiting[0])
        found = [row for row in self._waiting if self._is_padded(row) and _kind(row) == kind]
        found = found[: self._batch_size]
        self._waiting = deque(row for row in self._waiting if row not in found)
        return found

    def _pad(self, rows: list[Row]) -> None:
        generator, request = self._generator, rows[0].request
        generator.tell(None)
        sampling = request.sampling
        beams = sampling.num_beams
        # every value is stated: what is left open, `generate` takes from the model's own settings
        config = GenerationConfig(
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            num_beams=beams,
            length_penalty=sampling.length_penalty if beams > 1 else 1.0,
            early_stopping=False,
            repetition_penalty=sampling.repetition_penalty if beams > 1 else 1.0,
            eos_token_id=list(request.stop_token_ids) if beams > 1 else [NO_TOKEN],
            use_cache=generator.use_cache,
        )
        pad = generator.tokenizer.pad_token_id or 0
        try:
            self._adapters.use(request.adapter)
            generate_padded(self._model, rows, config, pad)
            return
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            said = str(problem).partition("\n")[0]
        release(self._model.device)
        self._batch_size = max(len(rows) // 2, 1)
        self._begin_again(len(rows), self._batch_size, said)

    def _begin_again(self, count: int, size: int, said: str) -> None:
        """Has all rows wait; if memory did not hold one alone, it fails."""
        left = [row for row in self.rows if row.end is None]
        longest = max(len(row.ids) for row in left)
        where = (
            f"memory has run out while {count:,} prompts of up to {longest:,} tokens were answered"
        )
        if count > 1:
            console.warn(f"{where}; from here on {size:,} at a time.", on_every_rank=True)
        else:
            left.pop(0).fail(
                OutOfMemory(
                    f"{where}. {said}\nLower max_new_tokens, cutoff_len or num_beams, or take a "
                    "device with more memory."
                )
            )
        self._waiting = deque(left)


def _kind(row: Row) -> tuple[Any, ...]:
    """What rows have in common that `generate` answers together."""
    sampling = row.request.sampling
    if sampling.num_beams == 1:
        return (row.request.adapter,)
    stops = tuple(row.request.stop_token_ids)
    settings = (sampling.num_beams, sampling.length_penalty, sampling.repetition_penalty)
    return (row.request.adapter, row.limit, stops, settings)


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
def evaluating(model: Any) -> Iterator[None]:
    """Turns dropout and gradient checkpointing off inside, and each module back afterwards.

    Layers recompute activations only while they are in training mode, so `eval` is enough to let
    them keep keys and values.
    """
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


class _Adapters:
    """Which of peft's adapters answer; what was active, and what learns, comes back in the end."""

    def __init__(self, model: Any) -> None:
        self._tuner = model.base_model if hasattr(model, "peft_config") else None
        self._used: str | None = None
        if self._tuner is not None:
            layers = (each for each in model.modules() if isinstance(each, BaseTunerLayer))
            self._was_off = any(each.disable_adapters for each in layers)
            self._before = list(self._tuner.active_adapters)
            self._learned = [(each, each.requires_grad) for each in model.parameters()]

    def use(self, name: str | None) -> None:
        """Has an adapter answer, `BARE` none, and None what did before."""
        if self._tuner is None or name == self._used:
            return
        self._used = name
        if name == BARE or (name is None and self._was_off):
            self._tuner.disable_adapter_layers()
        else:
            self._tuner.enable_adapter_layers()
            self._tuner.set_adapter(self._before if name is None else [name])

    def restore(self) -> None:
        """The model's adapters as they were."""
        if self._used is None or self._tuner is None:
            return
        self.use(None)
        for parameter, did in self._learned:
            parameter.requires_grad = did
