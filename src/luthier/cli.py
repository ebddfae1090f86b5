"""The first word picks a command; only that command is imported."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from luthier import console
from luthier.commands.help import commands
from luthier.errors import LuthierError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after the program's name; None takes those of the process.

    Returns:
        The exit code: 0, or 2 for what the user can mend, or 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    word = words[0] if words else "help"
    if word in ("-h", "--help"):
        word = "help"
    elif word in ("-V", "--version"):
        word = "version"
    try:
        if word not in commands():
            console.error(_unknown(word))
            return LuthierError.exit_code
        run = importlib.import_module(f"luthier.commands.{word}").run
        code: int = run(words[1:])
        sys.stdout.flush()
        return code
    except LuthierError as problem:
        console.error(str(problem))
        return problem.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe, such as `head`, has gone; Python would complain again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _unknown(word: str) -> str:
    if word.endswith((".yaml", ".yml", ".json")):
        return f"a command comes before {word}: luthier train {word}"
    near = difflib.get_close_matches(word, commands(), n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(commands())}."
    return f"the command {word!r} is unknown. {hint}"
