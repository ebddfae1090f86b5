from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.pack import DocumentPacker
from luthier.errors import DataError
from luthier.example import Example
from luthier.records import IGNORE_INDEX

BOS = 0


def document(tokens: np.ndarray, origin: str = "") -> Example:
    return Example(tokens.astype(np.int32), None, origin=origin)


corpora = st.lists(st.integers(1, 40), max_size=30).map(
    lambda lengths: [
        document(np.arange(start + 1, start + 1 + length), f"corpus.txt:{line}")
        for line, (start, length) in enumerate(
            zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False), 1
        )
    ]
)
"""Documents whose tokens are all different, so that each is known again."""

many_options = st.builds(
    lambda cutoff_len, overlap, **rest: DocumentPacker(
        cutoff_len + overlap + 1, overlap=overlap, **rest
    ),
    cutoff_len=st.integers(1, 24),
    is_packed=st.booleans(),
    is_isolated=st.booleans(),
    overlap=st.integers(0, 6),
    bos=st.sampled_from([None, BOS]),
)


def stream(documents: list[Example]) -> list[int]:
    return [token for document in documents for token in document.input_ids.tolist()]


def new_tokens(block: Example) -> list[int]:
    return block.labels[block.labels != IGNORE_INDEX].tolist()


def sequences(block: Example) -> list[list[int]]:
    ends = np.cumsum(block.sequence_lengths)
    return [part.tolist() for part in np.split(block.input_ids, ends[:-1])]


@given(corpora, many_options)
def test_every_token_is_new_once_and_in_order(documents: list[Example], options: DocumentPacker):
    blocks = list(options.cut(documents))

    assert [token for block in blocks for token in new_tokens(block)] == stream(documents)


@given(corpora, many_options)
def test_nothing_is_invented_but_bos_and_repeated_context(
    documents: list[Example], options: DocumentPacker
):
    known = {*stream(documents), *([] if options.bos is None else [options.bos])}

    for block in options.cut(documents):
        assert {*block.input_ids.tolist()} <= known
        for sequence in sequences(block):
            text = [token for token in sequence if token != BOS]
            assert text == list(range(text[0], text[0] + len(text)))
            assert sequence.count(BOS) == (options.bos is not None)
            assert options.bos is None or sequence[0] == BOS


@given(corpora, many_options)
def test_no_block_is_longer_than_cutoff_len(documents: list[Example], options: DocumentPacker):
    for block in options.cut(documents):
        assert 0 < len(block.input_ids) <= options.size
        assert sum(block.sequence_lengths) == len(block.input_ids) == len(block.labels)
        assert min(block.sequence_lengths) > 0


@given(corpora, st.integers(1, 24))
def test_blocks_of_the_stream_are_plain_concatenation_and_cutting(
    documents: list[Example], cutoff_len: int
):
    blocks = DocumentPacker(cutoff_len, is_isolated=False).cut(documents)

    tokens = stream(documents)
    expected = [tokens[at : at + cutoff_len] for at in range(0, len(tokens), cutoff_len)]
    assert [block.input_ids.tolist() for block in blocks] == expected


@given(corpora, many_options)
def test_an_isolated_sequence_is_part_of_one_document(
    documents: list[Example], options: DocumentPacker
):
    whole = {token: at for at, one in enumerate(documents) for token in one.input_ids.tolist()}

    for block in options.cut(documents):
        if options.is_isolated or not options.is_packed:
            for sequence in sequences(block):
                assert len({whole[token] for token in sequence if token != BOS}) == 1
        else:
            assert len(block.sequence_lengths) == 1


@given(corpora, st.integers(2, 24))
def test_isolated_blocks_are_full_but_for_one_token(documents: list[Example], cutoff_len: int):
    *full, _ = [*DocumentPacker(cutoff_len).cut(documents), None]

    for block, following in pairwise(full):
        missing = cutoff_len - len(block.input_ids)
        assert missing <= 1 or (missing == 2 and following.sequence_lengths[0] == 3)


def test_three_tokens_are_not_cut_where_two_fit():
    lengths = [1, 1, 3, 2]
    documents = [document(np.arange(length)) for length in lengths]

    blocks = list(DocumentPacker(4).cut(documents))

    assert [block.sequence_lengths for block in blocks] == [(1, 1), (3,), (2,)]


@given(corpora, many_options)
def test_the_end_of_a_document_never_stands_alone_where_that_can_be_helped(
    documents: list[Example], options: DocumentPacker
):
    lasts = {one.input_ids[-1] for one in documents if len(one.input_ids) > 1}

    if options.is_isolated and options.size > 3:
        alone = {
            sequence[0]
            for block in options.cut(documents)
            for sequence in sequences(block)
            if len(sequence) == 1
        }
        assert not alone & lasts


@given(corpora, many_options)
def test_a_later_part_begins_with_its_context(documents: list[Example], options: DocumentPacker):
    if options.is_packed and not options.is_isolated:
        starts = [1]
    else:
        starts = [int(document.input_ids[0]) for document in documents]

    for block in options.cut(documents):
        ends = np.cumsum(block.sequence_lengths)[:-1]
        for sequence, labels in zip(sequences(block), np.split(block.labels, ends), strict=True):
            new = labels[labels != IGNORE_INDEX]
            num_before = int(new[0]) - max(start for start in starts if start <= new[0])
            num_context = min(options.overlap, num_before)
            assert len(sequence) == (options.bos is not None) + num_context + len(new)


def test_overlap_repeats_what_stands_before_the_cut():
    text = document(np.arange(1, 8, dtype=np.int32))

    first, second, third = DocumentPacker(4, overlap=2).cut([text])

    assert first.input_ids.tolist() == [1, 2, 3, 4]
    assert second.input_ids.tolist() == [3, 4, 5, 6]
    assert second.labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, 5, 6]
    assert third.input_ids.tolist() == [5, 6, 7]


def test_without_packing_each_document_begins_an_example():
    documents = [
        document(np.arange(length, dtype=np.int32), f"a.txt:{length}") for length in (2, 5, 3)
    ]

    blocks = list(DocumentPacker(4, is_packed=False).cut(documents))

    assert [len(block.input_ids) for block in blocks] == [2, 3, 2, 3]
    assert [block.origin for block in blocks] == ["a.txt:2", "a.txt:5", "a.txt:5", "a.txt:3"]


def test_documents_are_drawn_as_they_are_needed():
    drawn = []

    def documents():
        for number in range(100):
            drawn.append(number)
            yield document(np.full(5, number, np.int32))

    blocks = DocumentPacker(8).cut(documents())
    next(blocks)

    assert len(drawn) <= 3


def test_context_and_bos_have_to_leave_room():
    with pytest.raises(DataError, match="cutoff_len 8 leaves no room"):
        DocumentPacker(8, overlap=7, bos=BOS)
