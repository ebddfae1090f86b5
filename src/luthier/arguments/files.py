"""YAML and JSON files -> settings, each with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from luthier.arguments.record import Setting
from luthier.errors import ArgumentsError

SUFFIXES = (".yaml", ".yml", ".json")


def is_config(text: str) -> bool:
    """Whether a word of the command line names a configuration file."""
    return text.lower().endswith(SUFFIXES) and "=" not in text and not text.startswith("-")


def read_config(path: str | Path) -> tuple[list[Setting], list[str]]:
    """What a YAML or JSON file sets, and every problem of its form.

    The lines of a JSON file are found by reading it as YAML, of which JSON is a part; its values
    are JSON's own.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return [], [f"{path}: there is no such file. The folder here is {Path.cwd()}."]
    except IsADirectoryError:
        return [], [f"{path}: this is a folder; name a YAML or JSON file."]
    except UnicodeDecodeError as problem:
        return [], [f"{path}: not UTF-8 text ({problem.reason} at byte {problem.start})."]
    values: Any = None
    if file.suffix.lower() == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as problem:
            return [], [f"{path}:{problem.lineno}: not JSON: {problem.msg}."]
        text = text.replace("\t", " ")
    try:
        return _settings(text, str(path), values)
    except MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f":{mark.line + 1}" if mark else ""
        return [], [f"{path}{line}: not {_kind(file)}: {problem.problem or problem.context}."]
    except YAMLError as problem:
        return [], [f"{path}: not {_kind(file)}: {problem}."]


def read_value(text: str) -> Any:
    """A value as YAML writes it on one line: `[a, b]`, `{a: 1}`."""
    return _yaml().load(text)


def read_settings(argument: str, name: str, hint: str) -> dict[str, Any]:
    """What stands in the JSON or YAML file that an argument names; an ArgumentsError if it cannot.

    `hint` says what may be named.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ArgumentsError(
            f"{argument}: there is no file {name}. {hint}; a path counts from the folder that the "
            "run is started in."
        )
    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if _kind(path) == "JSON" else _yaml().load(text)
    except (UnicodeDecodeError, json.JSONDecodeError, YAMLError) as problem:
        said = " ".join(str(problem).split())
        raise ArgumentsError(f"{argument}: {name} is not {_kind(path)}: {said}.") from problem
    if not isinstance(settings, dict):
        raise ArgumentsError(
            f"{argument}: {name} holds a {type(settings).__name__}; expected a mapping of settings."
        )
    return settings


def _kind(file: Path) -> str:
    return "JSON" if file.suffix.lower() == ".json" else "YAML"


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _settings(text: str, path: str, values: Any) -> tuple[list[Setting], list[str]]:
    yaml = _yaml()
    root: Node | None = yaml.compose(text)
    if root is None:
        return [], [f"{path}: the file is empty; expected lines of `name: value`."]
    if not isinstance(root, MappingNode):
        line = root.start_mark.line + 1
        return [], [f"{path}:{line}: expected lines of `name: value`, found {_found(root)}."]
    found: dict[str, Setting] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for key, value in _merged(root):
        line = key.start_mark.line + 1
        name = str(key.value) if isinstance(key, ScalarNode) else "?"
        if name in lines:
            problems.append(
                f"{path}:{line}: {name} stands twice, here and in line {lines[name]}; keep one."
            )
            continue
        lines[name] = line
        content = _content(yaml, value) if values is None else values[name]
        found[name] = Setting(name, content, f"{path}:{line}")
    return list(found.values()), problems


def _merged(root: MappingNode) -> list[tuple[Node, Node]]:
    """The pairs of a mapping, with those that `<<` brings and no key of its own says.

    Of several mappings that `<<` names the first wins. A mapping of this one that `<<` names holds
    what is merged, and is no setting.
    """
    merged: list[MappingNode] = []
    for key, value in root.value:
        if str(key.tag).endswith(":merge"):
            merged += value.value if isinstance(value, SequenceNode) else [value]
    for value in merged:
        if not isinstance(value, MappingNode):
            raise MarkedYAMLError(
                problem="`<<` merges mappings, and this is none", problem_mark=value.start_mark
            )
    pairs = [
        (key, value)
        for key, value in root.value
        if not str(key.tag).endswith(":merge") and not any(value is one for one in merged)
    ]
    said = {key.value for key, _ in pairs}
    for mapping in merged:
        brought = [pair for pair in _merged(mapping) if pair[0].value not in said]
        pairs += brought
        said |= {key.value for key, _ in brought}
    return pairs


def _content(yaml: YAML, node: Node) -> Any:
    if isinstance(node, ScalarNode) and str(node.tag).endswith(":timestamp"):
        return node.value
    return yaml.constructor.construct_document(node)


def _found(root: Node) -> str:
    return "a list" if not isinstance(root, ScalarNode) else f"the text {root.value!r}"
