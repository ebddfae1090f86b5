"""Talking to a model on the terminal, or through a pipe: a line in, an answer out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module, util
from typing import TextIO

from luthier import console
from luthier.errors import LuthierError
from luthier.records import Message
from luthier.serving.engine import Engine

HELP = """\
/reset          forget the conversation (also: /clear, clear)
/system TEXT    set the system prompt and forget the conversation; without TEXT, the template's own
/help           this list
/exit           leave (also: /quit, exit, Ctrl-D)
Ctrl-C          stop the answer that is being written"""

RESET = ("/reset", "/clear", "clear")
EXIT = ("/exit", "/quit", "exit")


def chat(
    engine: Engine,
    source: TextIO | None = None,
    target: TextIO | None = None,
    *,
    system: str | None = None,
) -> None:
    """Answers lines until they end, of standard input by default.

    On a terminal the user is asked for each line and may edit it; from a pipe or a file, lines are
    read as they are and only the answers are written.
    """
    source, target = source or sys.stdin, target or sys.stdout
    is_terminal = source.isatty()
    talk = Talk(engine, target, system)
    if is_terminal:
        _enable_line_editing()
        target.write("Say something; /help lists what else can be done.\n")
    for line in _asked_lines(target) if is_terminal else source:
        text = line.strip()
        if text in EXIT:
            return
        if text:
            talk.hear(text)


class Talk:
    """One conversation: what was said, and what is done with a line."""

    def __init__(self, engine: Engine, target: TextIO, system: str | None = None) -> None:
        self.engine, self.target, self.system = engine, target, system
        self.messages: list[Message] = []

    def hear(self, text: str) -> None:
        """Obeys a command, or answers."""
        word, _, rest = text.partition(" ")
        if text in RESET:
            self.messages.clear()
            console.info("The conversation is forgotten.")
        elif word == "/system":
            self.messages.clear()
            self.system = rest.strip() or None
            console.info(f"System prompt: {self.system or 'as the template has it'}")
        elif text == "/help":
            console.info(HELP)
        elif text.startswith("/") and "/" not in word[1:]:
            console.warn(f"there is no command {word}; /help lists those that are")
        else:
            self._answer(text)

    def _answer(self, text: str) -> None:
        """Writes the answer as it comes; of a stopped one, what was written is remembered."""
        asked = [*self.messages, Message("user", text)]
        said: list[str] = []
        pieces = self.engine.stream(asked, system=self.system)
        try:
            for piece in pieces:
                said.append(piece)
                self.target.write(piece)
                self.target.flush()
        except KeyboardInterrupt:
            self.target.write(" [stopped]")
        except LuthierError as problem:
            console.error(str(problem))
            return
        finally:
            pieces.close()
        self.target.write("\n")
        self.target.flush()
        self.messages = [*asked, Message("assistant", "".join(said))]


def _asked_lines(target: TextIO) -> Iterator[str]:
    while True:
        try:
            yield input("\nyou> ")
        except KeyboardInterrupt:
            target.write("\n/exit or Ctrl-D leaves.\n")
        except EOFError:
            target.write("\n")
            return


def _enable_line_editing() -> None:
    """Arrow keys and earlier lines, where Python was built with readline."""
    if util.find_spec("readline"):
        import_module("readline")
