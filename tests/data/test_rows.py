from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luthier.arguments.parse import parse_dict
from luthier.data.catalog import DatasetDescription, load_catalog
from luthier.data.reader import Row
from luthier.data.road import read_records
from luthier.data.sources import Source
from luthier.stages.stage import STAGES
from luthier.templates.template import TEMPLATES
from tests.templates.battery import join


def called(name: str, parameter: str, value: Any) -> dict[str, Any]:
    """A row whose tool has one parameter, as messages that call it."""
    schema = {"type": "object", "properties": {parameter: {"type": "string", "default": None}}}
    arguments = {parameter: value}
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return {
        "messages": [
            {"role": "user", "content": "Please."},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "It is done."},
        ],
        "tools": [{"name": name, "parameters": schema}],
    }


@pytest.mark.parametrize("template", ["qwen", "chatml"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tables_nulls_are_no_keys_of_calls_and_tools(tmp_path: Path, template, is_streamed):
    rows = [called("convert", "miles", 5.0), called("find", "title", "Dune")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    entry = {
        "file_name": str(tmp_path / "rows.parquet"),
        "formatting": "openai",
        "columns": {"messages": "messages", "tools": "tools"},
    }
    description: DatasetDescription = load_catalog({"user": entry}).describe("user")

    read = list(Source(description, in_place=is_streamed).rows())
    stage = STAGES.get("sft")(parse_dict({"dataset": ["user"]}, purpose="data"))
    conversations, problems = read_records(read, stage, stage.reading(description))

    assert not problems
    for (_, conversation), row, other in zip(conversations, rows, ("title", "miles"), strict=True):
        function = row["messages"][1]["tool_calls"][0]["function"]
        assert json.loads(conversation.messages[1].content) == [function]
        turns = TEMPLATES.get(template).turns(conversation)
        text = "".join(join(turn.prompt + turn.answer) for turn in turns)
        assert other not in text
        assert "null" not in text


def test_nulls_that_a_json_file_writes_stay(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"tools": [{"default": None}]}))

    (row,) = Source(DatasetDescription("user", "file", str(file))).rows()

    assert isinstance(row, Row)
    assert row.values == {"tools": [{"default": None}]}
