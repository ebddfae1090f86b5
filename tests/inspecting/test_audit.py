from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.arguments.parse import parse_dict
from luthier.data.pipeline import load_datasets
from luthier.inspecting.audit import audit
from luthier.inspecting.report import AuditReport
from luthier.stages.pairs import Pairs
from luthier.stages.stage import STAGES
from luthier.templates.template import TEMPLATES
from tests import tiny
from tests.inspecting.damage import DAMAGES, write_damaged


def look(*files: Path, tokenizer: Any = None, most: int | None = None, **given: Any) -> AuditReport:
    values = {"dataset": [str(file) for file in files], "dataset_dir": "."} | given
    arguments = parse_dict(values, purpose="data")
    stage = STAGES.get(arguments.finetuning.stage)(arguments)
    if tokenizer is not None:
        stage.fit(tokenizer, TEMPLATES.get("chatml"))
    return audit(arguments, stage, most)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def alpaca(question: str, answer: str = "an answer", **more: Any) -> dict[str, Any]:
    return {"instruction": question, "output": answer} | more


def kinds(report: AuditReport, *, errors: bool) -> dict[str, int]:
    return {str(kind): kind.count for kind in report.findings.kinds(errors=errors)}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_every_damage_is_found_at_its_line_and_nothing_else(tmp_path, tiny_tokenizer, name):
    entry = {
        "file_name": str(tmp_path / name),
        "formatting": "openai",
        "columns": {"tools": "tools"},
    }
    places = write_damaged(tmp_path / name, 10_000)

    report = look(tokenizer=tiny_tokenizer, dataset=["rows"], dataset_dir={"rows": entry})

    found: dict[int, list[dict[str, Any]]] = {}
    for shown in report.findings.as_dicts():
        found.setdefault(shown["line"], []).append(shown)
        assert shown["mend"]
        assert len(shown["excerpt"]) <= 80
    assert len(DAMAGES) >= 40
    assert [*sorted(found)] == [*sorted(places)]
    for line, damage in places.items():
        severity = "error" if damage.is_error else "note"
        assert any(
            shown["kind"].startswith(damage.kind) and shown["severity"] == severity
            for shown in found[line]
        ), found[line]
    num_errors = sum(damage.is_error for damage in places.values())
    assert (report.sets[0].num_rows, report.sets[0].num_bad) == (10_000, num_errors)
    assert report.exit_code == 1


def test_a_list_of_rows_is_refused_at_its_first_break(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(f"[\n{json.dumps(alpaca('one', ''))},\n{json.dumps(alpaca('two'))}\n{{}}]")

    report = look(file)

    assert kinds(report, errors=True) == {"the data set cannot be read": 1}
    assert f"{file}:4:1: not JSON: no comma behind the row" in "\n".join(report.lines())
    assert report.exit_code == 1


def test_each_kind_keeps_its_first_rows_and_counts_all(tmp_path):
    rows = [alpaca(f"question {number}", "") for number in range(20)]

    report = look(write(tmp_path / "rows.jsonl", *rows), most=3)

    (kind,) = report.as_dict()["kinds"]
    assert (kind["kind"], kind["column"], kind["count"]) == ("empty", "output", 20)
    assert [shown["line"] for shown in report.findings.as_dicts()] == [1, 2, 3]
    assert "... and 17 more (--all shows them)" in "\n".join(report.lines())


def test_without_a_tokenizer_rows_are_checked_and_tokens_are_not(tmp_path):
    report = look(write(tmp_path / "rows.jsonl", alpaca("one"), {"instruction": "two"}))

    assert kinds(report, errors=True) == {"output: missing": 1}
    assert report.as_dict()["lengths"] is None
    assert "no tokenizer is named" in "\n".join(report.lines())


def test_lengths_are_those_of_training(tmp_path, tiny_tokenizer):
    rows = [alpaca("word " * number) for number in range(1, 41)]
    file = write(tmp_path / "rows.jsonl", *rows)

    whole = look(file, tokenizer=tiny_tokenizer).sets[0].lengths
    cut = look(file, tokenizer=tiny_tokenizer, cutoff_len=50).sets[0].lengths

    assert whole.tokens == cut.tokens
    assert (whole.num_cut, whole.num_lost) == (0, 0)
    over = [length - 50 for length in whole.tokens if length > 50]
    assert (cut.num_cut, cut.num_lost) == (len(over), sum(over))
    assert 0 < cut.num_learned <= whole.num_learned


def test_a_row_whose_headers_have_no_room_is_set_aside_with_what_to_do(tmp_path, tiny_tokenizer):
    messages = [
        {"role": "user", "content": "word " * 100},
        {"role": "assistant", "content": "one"},
    ]
    file = write(tmp_path / "rows.jsonl", {"messages": messages})

    report = look(file, tokenizer=tiny_tokenizer, cutoff_len=3)

    assert kinds(report, errors=True) == {}
    (kind,) = report.findings.kinds(errors=False)
    assert "longer than cutoff_len" in str(kind)
    assert "Raise cutoff_len: system text, tools and headers" in kind.findings[0][1].fix
    assert (report.sets[0].num_bad, report.sets[0].num_aside) == (0, 1)


@pytest.mark.parametrize(
    ("on_overlong", "kept", "is_refused", "num_errors"),
    [
        ("truncate", 4, False, 0),
        ("split", 4, False, 0),
        ("drop", 2, False, 0),
        ("error", 2, True, 2),
    ],
)
def test_long_rows_are_told_as_on_overlong_treats_them(
    tmp_path, tiny_tokenizer, on_overlong, kept, is_refused, num_errors
):
    rows = [alpaca(f"{at} {'word ' * count}") for at, count in enumerate((1, 300, 2, 400))]
    file = write(tmp_path / "rows.jsonl", *rows)

    report = look(file, tokenizer=tiny_tokenizer, cutoff_len=100, on_overlong=on_overlong)

    (one,) = report.sets
    assert (one.num_kept, one.lengths.num_cut) == (kept, 2)
    assert report.is_refused(one) is is_refused
    assert report.findings.count(errors=True) == num_errors
    found = [problem for problem in report.findings if "longer" in problem.reason]
    assert [problem.origin for problem in found] == [f"{file}:2", f"{file}:4"]


def test_a_row_that_is_not_to_be_learned_is_a_note(tmp_path, tiny_tokenizer):
    file = write(tmp_path / "rows.jsonl", alpaca("one"), alpaca("two", weight=0))
    entry = {"file_name": str(file), "columns": {"weight": "weight"}}

    report = look(dataset=["mine"], dataset_dir={"mine": entry}, tokenizer=tiny_tokenizer)

    assert (report.sets[0].num_kept, report.sets[0].num_aside) == (1, 1)
    (kind,) = kinds(report, errors=False)
    assert "weight 0" in kind
    assert report.exit_code == 0


def test_rows_to_evaluate_on_are_looked_for_in_the_training_data(tmp_path):
    train = write(tmp_path / "train.jsonl", alpaca("one"), alpaca("two"), alpaca("three"))
    evaluation = write(tmp_path / "eval.jsonl", alpaca("two"), alpaca("three", "new"), alpaca("x"))

    report = look(train, eval_dataset=[str(evaluation)])

    found = {problem.origin: problem for problem in report.findings}
    assert found[f"{evaluation}:1"].found == f" (the same as {train}:2)"
    assert "a row to evaluate on that is trained on" in found[f"{evaluation}:1"].reason
    assert "a prompt to evaluate on" in found[f"{evaluation}:2"].reason
    assert len(found) == 2
    assert report.exit_code == 0


def test_a_misspelt_column_is_named_with_the_one_that_is_meant(tmp_path):
    rows = [alpaca("one"), {"instruction": "two", "ouput": "an answer", "id": 7}]

    report = look(write(tmp_path / "rows.jsonl", *rows))

    mends = {problem.field: problem.fix for problem in report.findings}
    assert "Did you mean 'output'?" in mends["ouput"]
    assert "Did you mean" not in mends["id"]


def test_a_key_of_messages_that_nobody_reads_is_a_note(tmp_path):
    answer = {"role": "assistant", "content": "b", "reasoning": "so", "loss": True, "mood": "good"}
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}, answer]},
        {"messages": [{"role": "user", "content": "c", "name": "Ann"}, answer]},
    ]

    report = look(write(tmp_path / "rows.jsonl", *rows))

    notes = {problem.field: problem.found for problem in report.findings}
    assert notes == {
        "messages[].mood": " (in 2 of 2 rows)",
        "messages[].name": " (in 1 of 2 rows)",
    }


@pytest.mark.parametrize("entry", [None, {"columns": {"prompt": "body"}}])
def test_texts_are_looked_at_as_stage_pt_learns_them(tmp_path, tiny_tokenizer, entry):
    column = "text" if entry is None else "body"
    texts: list[Any] = ["some words", " ", 3, None, "more words \x00", "some words", "x" * 3000]
    rows = [*({column: text} for text in texts), {"other": "words"}]
    file = write(tmp_path / "rows.jsonl", *rows)
    given: dict[str, Any] = {"dataset": [str(file)]}
    if entry is not None:
        given = {"dataset": ["mine"], "dataset_dir": {"mine": {"file_name": str(file)} | entry}}
    given |= {"stage": "pt", "max_bad_rows": 9}

    report = look(tokenizer=tiny_tokenizer, **given)

    assert kinds(report, errors=True) == {
        f"{column}: a number where a text belongs": 1,
        f"{column}: null": 1,
        f"{column}: missing": 1,
    }
    assert kinds(report, errors=False) == {
        "a row that stands twice": 1,
        "no text in it": 1,
        f"{column}: a NUL character": 1,
        "other: a column that is not read": 1,
    }
    trained = {"model_name_or_path": "unused", "output_dir": str(tmp_path), "do_train": True}
    trained |= {"cache_dir": str(tmp_path / "cache"), "cutoff_len": 64}
    arguments = parse_dict(given | trained)
    found = load_datasets(arguments, tiny.make_stage(arguments, tiny_tokenizer))
    (learned,) = found.report.sets
    (found,) = report.sets
    assert (found.num_rows, found.num_kept) == (learned.num_read, learned.num_kept)
    assert found.lengths.num_learned == found.lengths.total() == learned.num_tokens
    assert "none is lost" in "\n".join(report.lines())


def test_a_column_that_would_be_read_if_it_were_named_says_how(tmp_path):
    marks = {"weight": 0.5, "train": False, "system": "be kind", "history": [], "id": 7}
    file = write(tmp_path / "rows.jsonl", alpaca("one", input="more", **marks))
    entry = {"file_name": str(file), "columns": {"prompt": "instruction", "response": "output"}}

    report = look(dataset=["mine"], dataset_dir={"mine": entry})

    mends = {problem.field: problem.fix for problem in report.findings}
    parts = {"input": "query"} | {name: name for name in marks if name != "id"}
    assert mends.keys() == {*parts, "id"}
    for column, part in parts.items():
        assert f'"columns": {{"{part}": "{column}"}}' in mends[column]
    assert mends["id"] == "Nothing is learned from it."
    assert report.sets[0].remarks.keys() == {
        f'column {name!r} is not read; "columns": {{"{name}": "{name}"}} makes rows count by it'
        for name in ("weight", "train")
    }


def test_a_named_column_that_is_in_no_row_is_a_note(tmp_path):
    file = write(tmp_path / "rows.jsonl", alpaca("one", system_prompt="be kind"))
    entry = {"file_name": str(file), "columns": {"system": "sistem_prompt"}}

    report = look(dataset=["mine"], dataset_dir={"mine": entry})

    found = {problem.field: problem for problem in report.findings}
    assert "stands in no row" in found["sistem_prompt"].reason
    assert "Did you mean 'system_prompt'?" in found["sistem_prompt"].fix


def test_a_file_that_cannot_be_read_is_an_error_and_the_others_are_looked_at(tmp_path):
    wide = tmp_path / "wide.json"
    wide.write_bytes(json.dumps([alpaca("one")]).encode("utf-16"))
    fine = write(tmp_path / "fine.jsonl", alpaca("one"))

    report = look(wide, fine)

    assert kinds(report, errors=True) == {"the data set cannot be read": 1}
    assert [one.num_rows for one in report.sets] == [0, 1]
    assert [report.is_refused(one) for one in report.sets] == [True, False]


def test_a_byte_order_mark_at_the_start_is_a_note(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(alpaca("one")), encoding="utf-8-sig")

    report = look(file)

    (kind,) = kinds(report, errors=False)
    assert "byte-order mark" in kind
    assert report.exit_code == 0


def test_whether_training_would_stop_is_said(tmp_path):
    rows = [alpaca(f"question {number}") for number in range(99)] + [{"instruction": "x"}]
    file = write(tmp_path / "rows.jsonl", *rows)

    for budget, stops in ((0.01, False), (0.001, True), (1, False), (0, True)):
        report = look(file, max_bad_rows=budget)

        assert report.is_refused(report.sets[0]) is stops
        assert ("training would stop" in "\n".join(report.lines())) is stops


def test_the_json_document_holds_what_the_text_says(tmp_path, tiny_tokenizer):
    write_damaged(tmp_path / "rows.jsonl", 500)

    report = look(tmp_path / "rows.jsonl", tokenizer=tiny_tokenizer)
    document = json.loads(json.dumps(report.as_dict()))

    assert document["errors"] == sum(
        kind["count"] for kind in document["kinds"] if kind["severity"] == "error"
    )
    assert document["errors"] + document["notes"] == len(document["findings"])
    (one,) = document["sets"]
    assert one["kept"] + one["left_out"] == one["rows"] == 500
    assert document["lengths"]["rows"] == one["kept"]


def test_judged_answers_are_weighed_and_compared(tmp_path: Path):
    rows = [
        {"prompt": "a wood?", "chosen": "spruce, of course", "rejected": "no"},
        {"prompt": "a wood?", "chosen": "no", "rejected": "spruce, of course"},
        {"prompt": "a wood?", "chosen": "maple", "rejected": "no"},
        {"prompt": "a glue?", "chosen": "hide glue", "rejected": "hide glue"},
        {"prompt": "a glue?", "chosen": "hide glue", "rejected": " "},
    ]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    arguments = parse_dict({"dataset": [str(file)]}, purpose="data")
    stage = Pairs(arguments)
    stage.fit(tiny.make_tokenizer(), TEMPLATES.get("chatml"))

    report = audit(arguments, stage, None)

    (found,) = report.sets
    assert (found.num_rows, found.num_bad) == (5, 2)
    assert found.answers.as_dict()["pairs"] == 3
    assert "the chosen one is longer in 67%" in found.answers.line()
    errors = {kind.reason: kind.count for kind in report.findings.kinds(errors=True)}
    assert errors == {"the same as chosen": 1, "empty": 1}
    notes = [kind.reason for kind in report.findings.kinds(errors=False)]
    assert notes == ["a row that stands again with its judgement turned round"]
    assert "chosen answers have" in "\n".join(report.lines())
