from __future__ import annotations

import threading

import pytest

from luthier.arguments.generating import GeneratingArguments
from luthier.generating.request import Answer, Answering, Request, Sampling, Token


def test_an_answer_is_read_as_it_comes_and_waited_for() -> None:
    answering = Answering(Request([1]))
    tokens = (Token(5), Token(2, -0.5))

    def make() -> None:
        for token in tokens:
            answering.put(token)
        answering.end(Answer(tokens, "stop"))

    threading.Timer(0.01, make).start()

    assert answering.answer.token_ids == [5, 2]
    assert tuple(answering) == tokens
    assert not list(answering)


def test_what_goes_wrong_is_raised_after_the_tokens_before_it() -> None:
    answering = Answering(Request([1]))
    answering.put(Token(5))
    answering.end(ValueError("broke"))
    seen = []

    with pytest.raises(ValueError, match="broke"):
        seen.extend(token.id for token in answering)
    with pytest.raises(ValueError, match="broke"):
        _ = answering.answer


def test_a_listener_hears_tokens_and_the_end() -> None:
    heard: list[object] = []
    answering = Answering(Request([1]), heard.append)
    answer = Answer((Token(5),), "length")

    answering.put(Token(5))
    answering.end(answer)

    assert heard == [Token(5), answer]


def test_the_generating_arguments_become_settings_of_one_answer() -> None:
    arguments = GeneratingArguments(temperature=0.3, top_k=7, num_beams=2, repetition_penalty=1.2)

    sampling = Sampling.of(arguments, max_new_tokens=9, seed=4)

    assert (sampling.temperature, sampling.top_k, sampling.num_beams) == (0.3, 7, 2)
    assert (sampling.max_new_tokens, sampling.seed, sampling.repetition_penalty) == (9, 4, 1.2)
    assert not sampling.is_greedy
