"""a knob is declared once: no list of knobs' names stands anywhere else"""

from __future__ import annotations

import ast
import builtins
from pathlib import Path

import pytest

from luthier.arguments.choices import ADAPTERS
from luthier.arguments.record import fields
from tests.architecture.house import SOURCE, modules

KNOBS = {name for name in fields() if "_" in name} - {"weight_decay"}
"""Names that can be nothing else: `seed` and `template` are words, `weight_decay` is torch's."""

OUTSIDE = [file for file in modules() if not file.is_relative_to(SOURCE / "arguments")]


def is_of_a_run(value: ast.expr) -> bool:
    """Whether it is what a run has at this place (`data.max_samples`), not known of the knob."""
    names = [node.id for node in ast.walk(value) if isinstance(node, ast.Name)]
    return any(not hasattr(builtins, name) for name in names)


def listed_knobs(node: ast.AST) -> set[str]:
    """The names that a list, a set, the keys of a mapping, a case or a text of words holds."""
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            texts = [item.value for item in items if isinstance(item, ast.Constant)]
        case ast.Dict(keys=keys, values=values):
            texts = [
                key.value
                for key, value in zip(keys, values, strict=True)
                if isinstance(key, ast.Constant) and not is_of_a_run(value)
            ]
        case ast.MatchOr(patterns=patterns):
            texts = [
                each.value.value
                for each in patterns
                if isinstance(each, ast.MatchValue) and isinstance(each.value, ast.Constant)
            ]
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="split")):
            texts = text.split()
        case _:
            return set()
    return KNOBS & {text for text in texts if isinstance(text, str)}


def lists_of_knobs(source: str) -> list[tuple[int, set[str]]]:
    found = [
        (getattr(node, "lineno", 0), listed_knobs(node)) for node in ast.walk(ast.parse(source))
    ]
    return [(line, names) for line, names in found if len(names) > 1]


def test_knobs_are_listed_nowhere_but_where_they_are_declared():
    found = [
        f"{file.relative_to(SOURCE)}:{line} lists {', '.join(sorted(names))}"
        for file in OUTSIDE
        for line, names in lists_of_knobs(file.read_text(encoding="utf-8"))
    ]

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        'FREE = ("lora_rank", "max_steps")',
        'FREE = frozenset(["lora_rank", "max_steps", "x"])',
        'FREE = {"lora_rank": 1, "max_steps": 2}',
        'FREE = {"lora_rank": True, "max_steps": int, "save_steps": run.steps, "eval_steps": n}',
        'FREE = "lora_rank max_steps".split()',
        'match name:\n    case "lora_rank" | "max_steps":\n        pass',
    ],
)
def test_a_list_of_knobs_is_found_in_every_form(text: str):
    assert [names for _, names in lists_of_knobs(text)] == [{"lora_rank", "max_steps"}]


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_method_is_named_in_its_room_alone(file: Path):
    if not file.is_relative_to(SOURCE / "modeling" / "adapters"):
        texts = {
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }

        assert not texts & {*ADAPTERS.names()} - {"full"}
