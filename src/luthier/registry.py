"""Names of interchangeable things, known from their folder before anything in it is imported."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from luthier.errors import UnknownName

Registered = TypeVar("Registered")

_REGISTRATION = re.compile(r"^@?\w+\.register\(\s*((?:\"[^\"]+\"\s*,?\s*)+)", re.M)
_NAME = re.compile(r"\"([^\"]+)\"")


class Registry(Generic[Registered]):
    """Maps names to what was registered under them in one package.

    A module of the package registers with `@REGISTRY.register("name", "other name")` or
    `REGISTRY.register("name")(thing)`. The names are read from the source text, so listing them
    imports nothing; asking for one imports only its module.

    Args:
        kind: what a name stands for, in a user's words ("template", "stage").
        package: the dotted name of the folder whose modules register.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._registered: dict[str, Registered] = {}

    def register(self, *names: str) -> Callable[[Registered], Registered]:
        """A decorator that files its argument under every name given."""

        def file(thing: Registered) -> Registered:
            for name in names:
                assert name not in self._registered, f"{self.kind} {name!r} is registered twice"
                self._registered[name] = thing
            return thing

        return file

    @cached_property
    def _modules(self) -> dict[str, str]:
        spec = importlib.util.find_spec(self.package)
        assert spec is not None, self.package
        assert spec.submodule_search_locations is not None, self.package
        found: dict[str, str] = {}
        for folder in spec.submodule_search_locations:
            for path in sorted(Path(folder).glob("*.py")):
                for names in _REGISTRATION.findall(path.read_text(encoding="utf-8")):
                    module = (
                        self.package if path.stem == "__init__" else f"{self.package}.{path.stem}"
                    )
                    found |= dict.fromkeys(_NAME.findall(names), module)
        return found

    def names(self) -> list[str]:
        """Every name that can be asked for, sorted."""
        return sorted(self._modules.keys() | self._registered.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._registered or name in self._modules

    def get(self, name: str) -> Registered:
        """What stands under `name`, or an UnknownName with the nearest known ones."""
        if name not in self._registered:
            if name not in self._modules:
                raise UnknownName(self.kind, name, self.names())
            importlib.import_module(self._modules[name])
        return self._registered[name]
