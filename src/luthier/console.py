"""One line a fact to the terminal, on the first rank only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from luthier.secrecy import masked

_said: set[str] = set()


def is_main_process() -> bool:
    """Whether this process is rank 0 of the launch, as launchers tell it by RANK."""
    return os.environ.get("RANK", "0") == "0"


def info(text: str) -> None:
    """States a fact of the run on standard error."""
    _write(text, "")


def warn(text: str, *, on_every_rank: bool = False) -> None:
    """States a fact that the reader can act on, in yellow where there is a terminal."""
    _write(f"warning: {text}", "\x1b[33m", on_every_rank)


def error(text: str) -> None:
    """States why the program ends, in red where there is a terminal; on every rank."""
    _write(f"error: {text}", "\x1b[31m", on_every_rank=True)


def once(text: str, say: Callable[[str], None] = info) -> None:
    """Like `info` or another, but the same text is said only once in a process."""
    if text not in _said:
        _said.add(text)
        say(text)


def gibibytes(count: float) -> str:
    """A number of bytes as text in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _write(text: str, colour: str, on_every_rank: bool = False) -> None:
    if not (on_every_rank or is_main_process()):
        return
    text = masked(text)
    plain = not colour or not sys.stderr.isatty() or "NO_COLOR" in os.environ
    print(text if plain else f"{colour}{text}\x1b[0m", file=sys.stderr, flush=True)
