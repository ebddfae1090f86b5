from pathlib import Path
from typing import get_args

import pytest

from luthier.arguments.knob import Resume
from luthier.arguments.record import fields, meanings
from luthier.arguments.schema import ON_RESUME, help_page, json_schema, reference_page, schema_text
from tests.arguments.expected_names import EXPECTED_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "arguments.md"


def test_the_reference_page_is_fresh():
    assert PAGE.read_text(encoding="utf-8") == reference_page(), (
        "stale: run `luthier schema --markdown > docs/arguments.md`"
    )


def test_page_and_schema_know_every_name():
    page, schema = reference_page(), json_schema()

    assert [name for name in EXPECTED_NAMES if f"`{name}`" not in page] == []
    assert [name for name in EXPECTED_NAMES if name not in schema["properties"]] == []


@pytest.mark.parametrize("name", fields())
def test_every_help_line_is_a_full_thought(name):
    description = meanings()[name]

    assert description[0].isupper()
    assert description.endswith(".")
    assert "default" in description or "Required" in description


def test_the_schema_has_types_bounds_and_choices():
    properties = json_schema()["properties"]

    assert properties["lora_rank"]["minimum"] == 1
    assert properties["lora_rank"]["type"] == "integer"
    assert "cosine" in properties["lr_scheduler_type"]["enum"]
    assert {"type": "string"} in properties["dataset"]["anyOf"]


def test_the_schema_is_json_without_secrets():
    assert schema_text().startswith("{")


def test_help_lists_every_name():
    text = help_page()

    assert [name for name in EXPECTED_NAMES if name not in text] == []


def test_the_page_says_of_every_name_what_it_may_become_on_resume():
    assert set(ON_RESUME) == set(get_args(Resume))
    table = reference_page().partition("goes on from a checkpoint")[2].partition("\n## ")[0]

    assert [name for name in fields() if table.count(f"`{name}`") < 1] == []
