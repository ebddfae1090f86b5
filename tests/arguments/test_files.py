import json

import pytest

from luthier.arguments.files import read_config, read_value


def settings(path):
    given, problems = read_config(path)
    assert problems == []
    return {each.name: each.value for each in given}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("5E5", 5e5),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("", None),
        ("[a, b]", ["a", "b"]),
        ("2024-01-01", "2024-01-01"),
        ("010", 10),
        ("'1'", "1"),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_yaml_values_are_read_as_yaml_1_2(tmp_path, text, value):
    file = tmp_path / "run.yaml"
    file.write_text(f"name: {text}\n")

    assert settings(file) == {"name": value}


def test_json_and_yaml_of_the_same_values_agree(tmp_path):
    values = {"a": 1e-4, "b": "no", "c": [1, "x"], "d": None, "e": {"f": True}, "g": "😀 \t\\/"}
    (tmp_path / "run.json").write_text(json.dumps(values, indent="\t"))
    (tmp_path / "run.yaml").write_text(
        'a: 1e-4\nb: "no"\nc: [1, x]\nd:\ne: {f: true}\ng: "😀 \\t\\\\/"\n'
    )

    assert settings(tmp_path / "run.json") == values
    assert settings(tmp_path / "run.yaml") == values


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_every_setting_knows_its_line(tmp_path, name):
    file = tmp_path / name
    file.write_text('{\n"a": 1,\n\n"b": 2}')

    given, _ = read_config(file)

    assert [each.origin for each in given] == [f"{file}:2", f"{file}:4"]


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_duplicates_are_named_with_both_lines(tmp_path, name):
    file = tmp_path / name
    file.write_text('{\n"a": 1,\n"b": 2,\n"a": 3}')

    _, problems = read_config(file)

    assert problems == [f"{file}:4: a stands twice, here and in line 2; keep one."]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.yaml", b"a: [1", "a.yaml:1: not YAML"),
        ("a.yaml", b"a: 1\n b: 2\n", "a.yaml:2: not YAML"),
        ("a.yaml", b"", "the file is empty"),
        ("a.yaml", b"- a\n", "found a list"),
        ("a.yaml", b"just text", "found the text 'just text'"),
        ("a.yaml", b"a: {b: 1, b: 2}\n", "a.yaml:1: not YAML"),
        ("a.yaml", b"a: \xff\n", "not UTF-8"),
        ("a.yaml", b"a: *unknown\n", "a.yaml:1: not YAML"),
        ("a.json", b"{'a': 1}", "a.json:1: not JSON"),
        ("a.json", b'{"a": 1,\n}', "not JSON"),
    ],
)
def test_broken_files_are_problems_with_a_place(tmp_path, name, content, problem):
    file = tmp_path / name
    file.write_bytes(content)

    given, problems = read_config(file)

    assert given == []
    assert len(problems) == 1
    assert problem in problems[0]


def test_an_absent_file_and_a_folder_are_said(tmp_path):
    assert "no such file" in read_config(tmp_path / "a.yaml")[1][0]
    assert "folder" in read_config(tmp_path)[1][0]


def test_values_on_one_line_are_yaml():
    assert read_value("{a: [1, b]}") == {"a": [1, "b"]}


def test_merge_keys_bring_what_is_not_said(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "base: &base\n  lora_rank: 8\n  seed: 1\n  <<: {bf16: true, seed: 7}\n"
        "<<: [*base, {lora_rank: 4, cutoff_len: 64}]\n"
        "seed: 2\n"
        "optim: &name sgd\nlr_scheduler_kwargs: {<<: {a: 1}, b: *name}\n"
    )

    given, problems = read_config(file)

    assert problems == []
    assert {each.name: each.value for each in given} == {
        "seed": 2,
        "optim": "sgd",
        "lr_scheduler_kwargs": {"a": 1, "b": "sgd"},
        "lora_rank": 8,
        "bf16": True,
        "cutoff_len": 64,
    }
    origins = {each.name: each.origin for each in given}
    assert (origins["lora_rank"], origins["seed"]) == (f"{file}:2", f"{file}:6")


def test_what_cannot_be_merged_is_said_with_its_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("a: 1\n<<: text\n")

    assert read_config(file) == (
        [],
        [f"{file}:2: not YAML: `<<` merges mappings, and this is none."],
    )
