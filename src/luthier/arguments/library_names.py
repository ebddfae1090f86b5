"""What the installed transformers' `TrainingArguments` takes, read from its text, not imported."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal

FILE = "training_args.py"

KNOWN_TYPES = {
    "Any": Any,
    "Literal": Literal,
    "None": NoneType,
    "bool": bool,
    "dict": dict,
    "float": float,
    "int": int,
    "list": list,
    "str": str,
}


@cache
def library_types() -> dict[str, Any]:
    """Field name -> its type, `Any` where only the library knows it; empty without transformers."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    source = (Path(spec.origin).parent / FILE).read_text(encoding="utf-8")
    return {
        field.target.id: _type_of(field.annotation)
        for definition in ast.parse(source).body
        if isinstance(definition, ast.ClassDef) and definition.name == "TrainingArguments"
        for field in definition.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _type_of(annotation: ast.expr) -> Any:
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    if not names <= KNOWN_TYPES.keys():
        return Any
    expression = compile(ast.Expression(annotation), FILE, "eval")
    return eval(expression, {"__builtins__": {}}, KNOWN_TYPES)
