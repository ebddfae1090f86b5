from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.records import Message
from luthier.serving.chat import chat


class Parrot:
    """Answers with what it was asked, word by word, and remembers every call."""

    def __init__(self, interrupted_after: int | None = None) -> None:
        self.calls: list[tuple[tuple[Message, ...], str | None]] = []
        self.interrupted_after = interrupted_after

    def stream(self, messages: Sequence[Message], *, system: str | None = None) -> Iterator[str]:
        self.calls.append((tuple(messages), system))
        if messages[-1].content == "too long":
            raise LuthierError("no room")
        for number, word in enumerate(messages[-1].content.split()):
            if number == self.interrupted_after:
                raise KeyboardInterrupt
            yield f"{word.upper()} "


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def talk(lines: str, **options: Any) -> tuple[Parrot, str]:
    parrot, written = Parrot(**options), io.StringIO()
    chat(parrot, io.StringIO(lines), written)  # type: ignore[arg-type]
    return parrot, written.getvalue()


def test_lines_of_a_pipe_are_answered_and_nothing_else_is_written() -> None:
    _, written = talk("who are you\n\nwhat is glue")

    assert written == "WHO ARE YOU \nWHAT IS GLUE \n"


def test_each_question_comes_with_all_that_was_said() -> None:
    parrot, _ = talk("one\ntwo\n")

    assert parrot.calls[1] == (
        (Message("user", "one"), Message("assistant", "ONE "), Message("user", "two")),
        None,
    )


@pytest.mark.parametrize("word", ["/reset", "/clear", "clear"])
def test_reset_forgets_the_conversation(word: str) -> None:
    parrot, _ = talk(f"one\n{word}\ntwo\n")

    assert parrot.calls[-1] == ((Message("user", "two"),), None)


def test_a_system_prompt_begins_a_new_conversation() -> None:
    parrot, _ = talk("one\n/system Be brief.\ntwo\n/system\nthree\n")

    assert [(len(messages), system) for messages, system in parrot.calls] == [
        (1, None),
        (1, "Be brief."),
        (1, None),
    ]


@pytest.mark.parametrize("word", ["/exit", "/quit", "exit"])
def test_exit_leaves_the_rest_unread(word: str) -> None:
    parrot, _ = talk(f"one\n{word}\ntwo\n")

    assert len(parrot.calls) == 1


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    parrot, written = talk("a b c\nd\n", interrupted_after=2)

    assert written.startswith("A B  [stopped]\n")
    assert parrot.calls[1][0][1] == Message("assistant", "A B ")


def test_a_question_without_an_answer_is_not_remembered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parrot, written = talk("one\ntoo long\ntwo\n")

    assert "no room" in capsys.readouterr().err
    assert written == "ONE \nTWO \n"
    assert [message.content for message in parrot.calls[-1][0]] == ["one", "ONE ", "two"]


def test_unknown_commands_are_not_sent_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    parrot, _ = talk("/rest\n/help\n/usr/bin is a folder\n")

    said = capsys.readouterr().err
    assert "no command /rest" in said
    assert "/reset" in said
    assert len(parrot.calls) == 1


def test_on_a_terminal_ctrl_c_at_the_prompt_stays_and_ctrl_d_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Any] = [KeyboardInterrupt, "hello", EOFError]

    def answer(prompt: str) -> str:
        event = events.pop(0)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr("builtins.input", answer)
    parrot, written = Parrot(), io.StringIO()

    chat(parrot, Terminal(), written)  # type: ignore[arg-type]

    assert len(parrot.calls) == 1
    assert "HELLO" in written.getvalue()
    assert not events
