"""`luthier help`: the commands, or the help of one of them."""

from __future__ import annotations

import importlib

from luthier import cli
from luthier.errors import UnknownName

SUMMARY = "list the commands, or explain one: luthier help train"


def run(argv: list[str]) -> int:
    """Prints the help."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(page())
        return 0
    if argv[0] not in cli.commands():
        raise UnknownName("command", argv[0], cli.commands())
    code: int = importlib.import_module(f"luthier.commands.{argv[0]}").run(["--help"])
    return code


def page() -> str:
    """What stands behind `luthier --help`."""
    names = cli.commands()
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {cli.summary(name)}" for name in names]
    return "\n".join(
        [
            "luthier fine-tunes language models.",
            "",
            "usage: luthier COMMAND ...",
            "",
            *lines,
            "",
            "`luthier COMMAND --help` says more; docs/arguments.md explains every argument.",
        ]
    )
