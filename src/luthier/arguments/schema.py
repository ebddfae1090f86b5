"""JSON schema, reference page and help text of all arguments, from the fields themselves."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from luthier.arguments.legacy import LEGACY, Legacy, Status
from luthier.arguments.record import SECTIONS, facts, library_types, meanings
from luthier.arguments.wording import expectation

TITLES = {
    "model": "Model",
    "data": "Data",
    "finetuning": "Method",
    "training": "Training",
    "generating": "Generation",
    "exporting": "Export",
    "evaluating": "Benchmarks",
}

DRAFT = "https://json-schema.org/draft/2020-12/schema"

INTRODUCTION = """\
# Arguments

All arguments are flat: one name, one value, in a YAML or JSON file, on the command line, or in a
dict from Python.

```shell
luthier train examples/sft_lora.yaml learning_rate=2e-4
luthier train --model_name_or_path MODEL --dataset identity --do_train --output_dir saves/first
```

On the command line `--lora_rank 8`, `--lora-rank=8` and `lora_rank=8` say the same. Switches stand
alone (`--do_train`), take a word (`--bf16 true`), or are turned off (`--no_use_kv_cache`). A
comma list is `a,b`, in YAML and JSON also `[a, b]`. What stands later wins, and the command line
wins over the file. Names that only the installed transformers knows are handed to its
`TrainingArguments`.

An argument is *honoured*; *honoured otherwise*, by a new name or in another way; *accepted without
effect*, which the run says once; *not yet* in this version; or *refused*. Setting one of the last
two to anything but its default is an error that says what to use.

This page is written by `luthier schema --markdown`.
"""

STATUSES: tuple[tuple[Status, str], ...] = (
    ("honoured otherwise", "Old names that are translated."),
    ("accepted without effect", "Names on which nothing depends here."),
    ("not yet", "Names that this version does not have."),
    ("refused", "Names that have no place here."),
)


_ASKED = "Refused without `resume_allow_changes`"

ON_RESUME = {
    "free": "They may change: the model that comes out is the same but for the rounding of sums.",
    "best": "They may change as long as one of the two runs has no such number.",
    "length": "They may change. A schedule that looks at the end is drawn anew, which is said.",
    "elsewhere": "The thing itself is compared: the encoded examples, the examples of a step.",
    "learned": f"{_ASKED}.",
    "path": f"{_ASKED}; folders may move, the last part of their names counts.",
    "schedule": f"{_ASKED}, and in any case where the schedule acts on evaluations.",
    "half": f"{_ASKED}, and in any case under DeepSpeed, whose states have the dtype.",
    "groups": f"{_ASKED}, and in any case where only one of the two runs has it.",
    "fixed": "Refused: the weights that learn, or what the optimizer keeps of them, are others.",
}
"""What a knob may be in a run that goes on from a checkpoint -> the sentence for it."""


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file."""
    properties: dict[str, Any] = {}
    for section in SECTIONS.values():
        made = section.model_json_schema(mode="validation")
        assert "$defs" not in made, "fields are flat"
        properties |= made["properties"]
    for name, meaning in meanings().items():
        properties[name]["description"] = meaning
    for name, legacy in LEGACY.items():
        properties[name] = {
            "description": f"{legacy.status.capitalize()}. {_says(legacy)}",
            "default": legacy.default,
            "deprecated": True,
            "status": legacy.status,
        }
    for name in library_types():
        properties.setdefault(name, {"description": "Handed to transformers as it is."})
    return {
        "$schema": DRAFT,
        "title": "Configuration of luthier",
        "type": "object",
        "properties": dict(sorted(properties.items())),
        "required": ["model_name_or_path"],
        "additionalProperties": False,
    }


def reference_page() -> str:
    """The reference of all arguments as Markdown."""
    parts = [INTRODUCTION]
    for key, section in SECTIONS.items():
        rows = [
            (
                f"`{name}`",
                expectation(field),
                _shown(field.default),
                facts()[name].status,
                meanings()[name],
            )
            for name, field in section.model_fields.items()
        ]
        parts.append(f"## {TITLES[key]}\n\n{section.__doc__}\n")
        parts.append(_table(("name", "takes", "default", "status", "meaning"), rows))
    resumed = [
        (", ".join(f"`{name}`" for name, each in facts().items() if each.resume == kind), said)
        for kind, said in ON_RESUME.items()
    ]
    parts.append("## Other values in a run that goes on from a checkpoint\n")
    parts.append(_table(("names", "what becomes of another value"), resumed))
    for status, caption in STATUSES:
        legacy = [
            (", ".join(f"`{name}` ({_shown(each.default)})" for name, each in group), says)
            for says, group in groupby(_legacy_of(status), key=lambda each: _says(each[1]))
        ]
        parts.append(f"## {status.capitalize()}\n\n{caption}\n")
        parts.append(_table(("names (defaults)", "what to use"), legacy))
    return "\n".join(parts)


def help_page() -> str:
    """All arguments as text for a terminal."""
    return "\n".join(_help_lines())


def schema_text() -> str:
    """The JSON schema as text."""
    return json.dumps(json_schema(), indent=2, default=lambda secret: "")


def _help_lines() -> Iterator[str]:
    for key, section in SECTIONS.items():
        yield f"\n{TITLES[key]}"
        for name, field in section.model_fields.items():
            yield f"  --{name}  {expectation(field)}"
            yield textwrap.fill(
                meanings()[name], 96, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    for status, caption in STATUSES:
        yield f"\n{status.capitalize()}: {caption}"
        names = ", ".join(name for name, _ in _legacy_of(status))
        yield textwrap.fill(names, 96, initial_indent="  ", subsequent_indent="  ")


def _legacy_of(status: Status) -> list[tuple[str, Legacy]]:
    return [(name, each) for name, each in LEGACY.items() if each.status == status]


def _says(legacy: Legacy) -> str:
    if legacy.part_of is None:
        return legacy.says
    return f"Part of `{legacy.part_of}`, without effect by itself. {legacy.says}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(
        "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |\n" for row in lines
    )


def _shown(value: Any) -> str:
    if value is None or value in ((), [], ""):
        return "unset"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
