from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.house import ROOT, SOURCE, modules

NAMELESS = {"utils", "util", "misc", "common", "helpers", "helper"}
UNMIRRORED = {"architecture", "benchmarks", "chaos", "examples", "invariants", "parity", "security"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|work|mnt|home/\w+|Users/\w+)/[\w.]")


def project_files() -> list[Path]:
    """What belongs to the project: the files that git knows, or would take."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("the files of the project are known only in a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_door_has_a_caption(file: Path):
    caption = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))

    assert caption, f"{file} has no module docstring"
    assert len(caption.splitlines()[0]) <= 100


def test_the_init_of_a_room_is_only_its_caption():
    for file in SOURCE.rglob("__init__.py"):
        if file.parent != SOURCE:
            (caption,) = ast.parse(file.read_text(encoding="utf-8")).body

            assert isinstance(caption, ast.Expr), f"{file} holds more than a docstring"


def test_every_folder_of_modules_is_a_room():
    for file in modules():
        assert (file.parent / "__init__.py").exists(), f"{file.parent} has no __init__.py"


def test_no_room_and_no_file_has_a_name_that_says_nothing():
    for file in [*modules(), *modules(ROOT / "tests")]:
        assert not NAMELESS & {part.removesuffix(".py") for part in file.relative_to(ROOT).parts}


def test_tests_mirror_the_rooms():
    folders = [place for place in (ROOT / "tests").iterdir() if (place / "__init__.py").exists()]

    for folder in folders:
        assert folder.name in UNMIRRORED or (SOURCE / folder.name).is_dir(), folder


def test_no_source_switches_remote_code_on():
    switched_on = re.compile(r"trust_remote_code[\"']?\s*[=:]\s*True")

    assert not [file for file in modules() if switched_on.search(file.read_text(encoding="utf-8"))]


def test_no_file_names_a_place_on_one_machine():
    for file in project_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = MACHINE_PATH.search(text)

        assert not found, f"{file} names {found[0]}"
