"""many conversations -> Arrow batches of examples, by one process or several."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from luthier.data.check import RowProblem
from luthier.data.encode import Encoder, count_learned
from luthier.records import Conversation, Encoded

if TYPE_CHECKING:
    import pyarrow

Purpose: TypeAlias = Literal["learn", "answer"]
"""Whether rows are encoded to learn from, or as prompts to answer."""


@dataclass
class Batch:
    """A stretch of rows, encoded.

    Attributes:
        table: an Arrow record batch; see `schema`.
        problems: the rows that are not in it.
        num_rows_cut: rows that lost tokens to cutoff_len.
        num_tokens_cut: the tokens they lost.
        num_tokens: the tokens kept.
        num_learned: those that are learned.
    """

    table: pyarrow.RecordBatch
    problems: list[RowProblem] = field(default_factory=list)
    num_rows_cut: int = 0
    num_tokens_cut: int = 0
    num_tokens: int = 0
    num_learned: int = 0


def schema() -> pyarrow.Schema:
    """The columns of a batch.

    `row` numbers the data set's rows from 0, so that the two purposes can be matched.
    """
    import pyarrow

    integers = pyarrow.list_(pyarrow.int32())
    return pyarrow.schema(
        {
            "input_ids": integers,
            "labels": integers,
            "num_tokens": pyarrow.int32(),
            "num_learned": pyarrow.int32(),
            "origin": pyarrow.string(),
            "row": pyarrow.int64(),
        }
    )


def encode_rows(
    conversations: Sequence[tuple[int, Conversation]],
    encoder: Encoder,
    purpose: Purpose,
    *,
    batch_size: int,
    num_workers: int,
) -> Iterator[Batch]:
    """Encodes numbered rows, `batch_size` of them with each call of the tokenizer.

    Args:
        conversations: each with its row number.
        encoder: how.
        purpose: for what.
        batch_size: rows that are encoded together.
        num_workers: processes; the result does not depend on it.

    Yields:
        The batches in the order of the rows.
    """
    starts = range(0, len(conversations), batch_size)
    num_workers = min(num_workers, len(starts))
    if num_workers <= 1:
        for start in starts:
            yield _encode(conversations[start : start + batch_size], encoder, purpose)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_all_start_methods, get_context

    # A forked worker finds tokenizer and rows in its memory, where a fresh one would import and
    # unpickle for seconds. It calls the tokenizer and Arrow only, never torch's threads.
    method = "fork" if "fork" in get_all_start_methods() else "spawn"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        pool = ProcessPoolExecutor(
            num_workers,
            mp_context=get_context(method),
            initializer=_start_worker,
            initargs=(conversations, encoder, purpose, batch_size),
        )
        try:
            with _interrupts_held():
                batches = pool.map(_encode_from, starts)
            yield from batches
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Lets Ctrl-C wait while workers start, and never reach those that are forked meanwhile.

    A pool that is interrupted half started never ends.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: tuple[Sequence[tuple[int, Conversation]], Encoder, Purpose, int] | None = None


def _start_worker(*work: Any) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for them
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _encode_from(start: int) -> Batch:
    assert _work is not None
    conversations, encoder, purpose, batch_size = _work
    return _encode(conversations[start : start + batch_size], encoder, purpose)


def _encode(
    conversations: Sequence[tuple[int, Conversation]], encoder: Encoder, purpose: Purpose
) -> Batch:
    rows = [conversation for _, conversation in conversations]
    results = encoder.encode(rows) if purpose == "learn" else encoder.encode_prompts(rows)
    kept: list[tuple[int, str, Encoded]] = []
    problems = []
    for (number, conversation), result in zip(conversations, results, strict=True):
        if isinstance(result, RowProblem):
            problems.append(result)
        else:
            kept.append((number, str(conversation.origin or ""), result))
    cuts = [example.num_cut for _, _, example in kept if example.num_cut]
    num_tokens = [len(example.input_ids) for _, _, example in kept]
    num_learned = [
        count_learned(example) if purpose == "learn" else len(example.labels)
        for _, _, example in kept
    ]
    return Batch(
        _to_arrow(kept, num_tokens, num_learned),
        problems,
        num_rows_cut=len(cuts),
        num_tokens_cut=sum(cuts),
        num_tokens=sum(num_tokens),
        num_learned=sum(num_learned),
    )


def _to_arrow(
    kept: Sequence[tuple[int, str, Encoded]], num_tokens: list[int], num_learned: list[int]
) -> pyarrow.RecordBatch:
    import pyarrow

    columns = schema()
    values = [
        [example.input_ids for _, _, example in kept],
        [example.labels for _, _, example in kept],
        num_tokens,
        num_learned,
        [origin for _, origin, _ in kept],
        [number for number, _, _ in kept],
    ]
    arrays = [
        pyarrow.array(value, type=column.type)
        for value, column in zip(values, columns, strict=True)
    ]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=columns)
