"""`luthier help`: the commands, or the help of one of them."""

from __future__ import annotations

import ast
import difflib
import importlib
from pathlib import Path

from luthier.errors import LuthierError, UnknownName

FOLDER = Path(__file__).parent
SUMMARY = "list the commands, or explain one: luthier help train"


def run(argv: list[str]) -> int:
    """Prints the help."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(page())
        return 0
    if argv[0] not in commands():
        raise LuthierError(unknown_command(argv[0]))
    return start(argv[0], ["--help"])


def start(command: str, argv: list[str]) -> int:
    """Runs a command by its place in this folder, or prints its `USAGE` if that is asked for."""
    module = importlib.import_module(f"luthier.commands.{command}")
    if {"-h", "--help"} & set(argv) and hasattr(module, "USAGE"):
        print(module.USAGE)
        return 0
    code: int = module.run(argv)
    return code


def run_verb(command: str, argv: list[str]) -> int:
    """Runs the verb of a command that the first word names; its file is in `COMMAND_verbs`."""
    folder = FOLDER / f"{command}_verbs"
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("\n".join([f"usage: luthier {command} VERB ...", "", *listing(folder)]))
        print(f"\n`luthier {command} VERB --help` says more.")
        return 0
    if argv[0] not in commands(folder):
        raise UnknownName(f"verb of `luthier {command}`:", argv[0], commands(folder))
    return start(f"{folder.name}.{argv[0]}", argv[1:])


def commands(folder: Path = FOLDER) -> list[str]:
    """The words that can come first, or those behind a first word that has a folder of its own."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def summary(command: str, folder: Path = FOLDER) -> str:
    """What a command does, from its `SUMMARY`, without importing it."""
    source = (folder / f"{command}.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="SUMMARY")], value=ast.Constant(value=str(text))):
                return text
    raise AssertionError(f"{command} has no SUMMARY")


def page() -> str:
    """What stands behind `luthier --help`."""
    return "\n".join(
        [
            "luthier fine-tunes language models.",
            "",
            "usage: luthier COMMAND ...",
            "",
            *listing(),
            "",
            "`luthier COMMAND --help` says more; docs/arguments.md explains every argument.",
        ]
    )


def listing(folder: Path = FOLDER) -> list[str]:
    """A line for each command."""
    names = commands(folder)
    width = max(map(len, names))
    return [f"  {name:<{width}}  {summary(name, folder)}" for name in names]


INSTEAD = {
    "webchat": "`luthier chat` answers in the terminal",
    "webui": "write a configuration (examples/ has some) and start `luthier train CONFIG.yaml`",
}
"""First words of LLaMA-Factory that are no commands -> what there is instead."""


def unknown_command(word: str) -> str:
    """The sentence for a first word that is none: what there is instead, or the nearest."""
    if word in INSTEAD:
        return f"there is no command {word!r}: {INSTEAD[word]}."
    if word.endswith((".yaml", ".yml", ".json")):
        return f"a command comes before {word}: luthier train {word}"
    near = difflib.get_close_matches(word, commands(), n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(commands())}."
    return f"the command {word!r} is unknown. {hint}"
