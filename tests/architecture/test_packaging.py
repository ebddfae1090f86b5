from __future__ import annotations

import re
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from luthier.optional import EXTRAS
from tests.architecture.house import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED_EXTRAS = ("api", "dev", "metrics", "gguf")


def read_constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def wanted() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in INSTALLED_EXTRAS for line in extras[extra]]
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if requirement.name != "luthier"]


def test_every_extra_that_a_message_names_installs_its_package():
    for module, extra in EXTRAS.items():
        names = {Requirement(line).name for line in PROJECT["optional-dependencies"][extra]}

        assert module.replace("_", "-") in names


def test_torch_stands_first():
    assert read_constraints()[0].name == "torch"


def test_every_constraint_is_one_exact_version():
    for constraint in read_constraints():
        (specifier,) = constraint.specifier

        assert specifier.operator == "=="
        assert constraint.url is None


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_dependency_has_one_version_inside_its_range(python: str):
    pinned: dict[str, str] = {}
    for constraint in read_constraints():
        if constraint.marker is None or constraint.marker.evaluate({"python_version": python}):
            (specifier,) = constraint.specifier
            name = canonicalize_name(constraint.name)
            assert name not in pinned, f"{name} has two versions for Python {python}"
            pinned[name] = specifier.version

    for requirement in wanted():
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: constraints say {version}"


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt", "Makefile", ".ci/run"])
def test_installing_names_no_index(file: str):
    text = (ROOT / file).read_text(encoding="utf-8")

    assert not re.search(r"index-url|find-links|://|\bpypi\b", text)


def test_the_makefile_and_the_constraints_agree_on_torch():
    (specifier,) = read_constraints()[0].specifier

    assert f"torch=={specifier.version}" in (ROOT / "Makefile").read_text(encoding="utf-8")
