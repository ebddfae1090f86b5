"""a format, a template and a tool format of one's own are one file each, seen by `data show`"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.architecture.test_one_file import drop, luthier

FORMAT = '''\
"""A toy: a question, its answer, and the names of tools."""
import json

from luthier.data.catalog import FORMATS
from luthier.records import Conversation, Message


@FORMATS.register("toy")
def read_toy(row, reading, origin):
    said = (Message("user", row["q"]), Message("assistant", row["a"]))
    tools = json.dumps([{"name": name} for name in row["tools"]])
    return Conversation(said, tools=tools, origin=origin)
'''

TEMPLATE = '''\
"""A toy: letters before what is said."""
from luthier.templates.template import PLAIN

PLAIN.register("toy", "toys", user="<Q>{{content}}{{eos}}<A>", tool_format="toy_tools")
'''

TOOL_FORMAT = '''\
"""A toy: the tools by their names."""
from luthier.templates.tool_format import TOOL_FORMATS, ToolFormat, list_tools

described = list_tools("tools:", '{{- " " ~ tool["name"] }}', ";")
TOOL_FORMATS.register("toy_tools")(ToolFormat(described, "", lambda text: []))
'''


@pytest.mark.slow
def test_a_format_a_template_and_a_tool_format_are_one_file_each(
    tmp_path: Path, llama_folder: Path
):
    source = drop(tmp_path, "data/formats/toy.py", FORMAT)
    (source / "luthier" / "templates" / "families" / "toy.py").write_text(TEMPLATE)
    (source / "luthier" / "templates" / "tools" / "toy.py").write_text(TOOL_FORMAT)
    rows = [{"q": "what is it", "a": "a saw", "tools": ["see", "find"]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    entry = {"rows": {"file_name": "rows.json", "formatting": "toy"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry), encoding="utf-8")

    named = [f"model_name_or_path={llama_folder}", "template=toys", f"dataset_dir={tmp_path}"]
    shown = luthier(source, "data", "show", "dataset=rows", *named)

    assert shown.returncode == 0, shown.stderr[-3000:]
    assert "1 prompt 'tools: see find;'" in shown.stdout
    assert "1 prompt '<Q>what is it'" in shown.stdout
    assert "1 answer ⟦'a saw'⟧" in shown.stdout
