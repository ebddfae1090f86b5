"""what is promised of the whole house: its core, what there is one of, the page about it"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.architecture import house
from tests.architecture.house import EDGE, ROOT, SOURCE, modules

PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PRIVATE = re.compile(r"\bTrainer\._|\.trainer import .*\b_")
"""Names of the library's trainer that it does not promise to keep."""


def core() -> set[Path]:
    """What the training loop needs when it runs, imports in functions included."""
    return house.closure(SOURCE / "training" / "loop.py")


def classes() -> list[ast.ClassDef]:
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in modules())
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_the_core_is_read_in_an_afternoon():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in core()}

    assert sum(lines.values()) <= 5_000, lines


def test_the_core_knows_no_room_at_the_edge():
    assert len(core()) > 10
    assert not {house.room_of(file) for file in core()} & EDGE.keys()


def test_there_is_one_example():
    names = [node.name for node in classes()]

    assert [name for name in names if name.lstrip("_") == "Example"] == ["Example"]


def test_the_loop_is_our_own():
    library = {"Trainer", "Seq2SeqTrainer"}
    bases = {ast.unparse(base).rpartition(".")[2] for node in classes() for base in node.bases}

    assert not bases & library
    assert not [file for file in modules() if PRIVATE.search(file.read_text(encoding="utf-8"))]


def test_the_page_about_the_house_is_short_and_names_what_is_there():
    named = set(re.findall(r"[\w/]+/(?:\w+\.(?:py|md))?", PAGE)) | set(
        re.findall(r"(?<![\w/])\w+\.(?:py|md)", PAGE)
    )
    places = [SOURCE, ROOT, SOURCE / "data", ROOT / "tests" / "architecture"]

    assert len(PAGE.splitlines()) <= 120
    assert len(named) > 20
    assert not [name for name in named if not any((place / name).exists() for place in places)]
