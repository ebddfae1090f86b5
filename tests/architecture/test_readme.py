from __future__ import annotations

import ast
import re
from pathlib import Path

from ruamel.yaml import YAML

from luthier.arguments.parse import parse_dict
from luthier.commands.help import commands
from tests.architecture.house import ROOT, SOURCE

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = README.partition("## The house")[2].split("```")[1]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def first_cells(heading: str) -> list[str]:
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (?!command|file|---)([^|]+) \|", section, flags=re.MULTILINE)


def caption(place: Path) -> str:
    file = place / "__init__.py" if place.is_dir() else place
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert said is not None
    return plain(said.splitlines()[0])


def plain(text: str) -> str:
    return text.strip().rstrip(".").lower()


def mapped(indent: str) -> dict[str, str]:
    found = re.findall(rf"^{indent}(\S+)[ ]+(\S.*)$", MAP, flags=re.MULTILINE)
    return {name: plain(said) for name, said in found}


def test_the_two_commands_come_first():
    first = code_blocks("shell")[0].splitlines()

    assert [line.partition("#")[0].strip() for line in first] == ["make quickstart", "make test"]


def test_every_room_is_on_the_map_with_the_caption_on_its_door():
    places = [
        *(folder for folder in SOURCE.iterdir() if (folder / "__init__.py").exists()),
        *(file for file in SOURCE.glob("*.py") if not file.stem.startswith("__")),
    ]

    expected = {
        f"{place.name}/" if place.is_dir() else place.name: caption(place) for place in places
    }

    assert mapped("  ") == expected


def test_every_place_on_the_map_is_there():
    for name in mapped(""):
        assert (ROOT / name).exists(), name


def test_the_configuration_of_the_readme_parses():
    (text,) = code_blocks("yaml")

    arguments = parse_dict(YAML(typ="safe").load(text))

    assert not arguments.passed_through


def test_every_command_has_its_row():
    words = [re.match(r"`luthier (\w+)", cell) for cell in first_cells("Commands")]

    assert sorted({word[1] for word in words if word}) == commands()


def test_every_example_has_its_row():
    names = [re.match(r"\[examples/(\S+)\]", cell) for cell in first_cells("Examples")]

    examples = ROOT / "examples"
    files = {file.name for file in examples.glob("*.yaml")}
    for_launchers = {"accelerate", "deepspeed"}
    assert {name[1] for name in names if name} == files | for_launchers
    assert all((examples / name).is_dir() for name in for_launchers)


def test_every_link_leads_to_a_file():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
