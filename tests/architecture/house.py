"""the rooms of a source tree, their files, and the arrows between them, read without importing"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "luthier"

FLOORS = (
    {"__main__"},
    {"cli"},
    {"commands", "__init__"},
    {"evaluating", "exporting"},
    {"inspecting", "training", "serving"},
    {"checkpoints"},
    {"distributed"},
    {"fused", "generating", "stages", "suggestions"},
    {"losses", "data", "modeling"},
    {"batching"},
    {"kernels", "templates", "processes"},
    {"arguments"},
    {"collector", "console", "example", "optional", "registry"},
    {"records"},
    {"errors", "secrecy"},
)
"""The rooms from the roof down. A room knows only rooms of lower floors, none of its own."""

EDGE = {
    "evaluating": {"commands"},
    "exporting": {"commands"},
    "fused": {"training/run.py", "evaluating/likelihood.py"},
    "inspecting": {"commands"},
    "suggestions": {"training/run.py"},
}
"""Rooms that the core does without -> who may know them: other rooms, or single files."""


@dataclass(frozen=True)
class Arrow:
    """One import: which file says it, on which line, and which module it names."""

    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def modules(source: Path = SOURCE) -> list[Path]:
    """Every module of the tree, sorted."""
    return sorted(source.rglob("*.py"))


def arrows(source: Path = SOURCE) -> Iterator[Arrow]:
    """Every import of the tree's own modules.

    Those in functions, under TYPE_CHECKING and by `import_module("luthier...")` count too: what a
    file must know to be understood is the same wherever the import stands.
    """
    package = source.name
    for file in modules(source):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name in _imported(node, package, file):
                if name == package or name.startswith(f"{package}."):
                    yield Arrow(file, node.lineno, name)


def room_of(file: Path, source: Path = SOURCE) -> str:
    """The room that a file stands in; a file beside the rooms is one of its own."""
    return file.relative_to(source).parts[0].removesuffix(".py")


def target_room(arrow: Arrow) -> str | None:
    """The room that an arrow leads to; None where it only reads the version."""
    _, _, rest = arrow.module.partition(".")
    if rest in ("", "__version__"):
        return None
    room = rest.partition(".")[0]
    return room if any(room in floor for floor in FLOORS) else "__init__"


def target_file(arrow: Arrow, source: Path = SOURCE) -> Path | None:
    """The file that an arrow leads to; None where it only reads the version, or leads nowhere."""
    room = target_room(arrow)
    if room in (None, "__init__"):
        return None if room is None else source / "__init__.py"
    parts = arrow.module.split(".")[1:]
    for end in range(len(parts), 0, -1):
        place = source.joinpath(*parts[:end])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.exists():
                return file
    return None


def floor_of(room: str) -> int:
    """How far below the roof a room lies.

    Raises:
        KeyError: if the plan does not know the room.
    """
    for number, floor in enumerate(FLOORS):
        if room in floor:
            return number
    raise KeyError(room)


def wrong_arrows(source: Path = SOURCE) -> list[str]:
    """A sentence for each arrow that does not lead down, with both files."""
    return [
        f"{arrow} ({target_file(arrow, source)}): {here!r} may know only rooms below it,"
        f" and {there!r} is not"
        for arrow in arrows(source)
        if (there := target_room(arrow)) is not None
        and there != (here := room_of(arrow.file, source))
        and floor_of(there) <= floor_of(here)
    ]


def arrows_to_the_edge(source: Path = SOURCE) -> list[str]:
    """A sentence for each arrow to a room at the edge from where nobody may know it."""
    return [
        f"{arrow}: only {', '.join(sorted(EDGE[there]))} may know {there!r}"
        for arrow in arrows(source)
        if (there := target_room(arrow)) in EDGE
        and room_of(arrow.file, source) not in {there, *EDGE[there]}
        and arrow.file.relative_to(source).as_posix() not in EDGE[there]
    ]


def circles(source: Path = SOURCE) -> list[str]:
    """A sentence for each group of files that lead back to themselves."""
    leads: dict[Path, set[Path]] = {file: set() for file in modules(source)}
    for arrow in arrows(source):
        target = target_file(arrow, source)
        if target is not None and target != arrow.file:
            leads[arrow.file].add(target)
    found: dict[frozenset[Path], str] = {}
    for start in leads:
        path = _way_back(start, leads)
        if path:
            found.setdefault(frozenset(path), " -> ".join(map(str, [*path, start])))
    return list(found.values())


def closure(start: Path, source: Path = SOURCE) -> set[Path]:
    """A file and all files that it needs when it runs, wherever an import stands."""
    found, waiting = {start}, [start]
    while waiting:
        file = waiting.pop()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for_types = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for part in block.body
            for node in ast.walk(part)
        }
        for node in ast.walk(tree):
            for name in () if id(node) in for_types else _imported(node, source.name, file):
                if name == source.name or name.startswith(f"{source.name}."):
                    target = target_file(Arrow(file, node.lineno, name), source)
                    if target is not None and target not in found:
                        found.add(target)
                        waiting.append(target)
    return found


def _way_back(start: Path, leads: dict[Path, set[Path]]) -> list[Path]:
    waiting, seen = [[start]], {start}
    while waiting:
        path = waiting.pop(0)
        for following in sorted(leads.get(path[-1], ())):
            if following == start:
                return path
            if following not in seen:
                seen.add(following)
                waiting.append([*path, following])
    return []


def _imported(node: ast.AST, package: str, file: Path) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(level=0, module=str(module)):
            return [f"{module}.{alias.name}" for alias in node.names]
        case ast.ImportFrom():
            raise AssertionError(f"{file}:{node.lineno} imports relatively; say the whole name")
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[name]):
            return [text] if (text := _literal_start(name)).startswith(package) else []
    return []


def _literal_start(name: ast.expr) -> str:
    if isinstance(name, ast.JoinedStr) and name.values:
        name = name.values[0]
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return name.value.rstrip(".")
    return ""
