"""questions of a benchmark: read from each form of file, asked, and marked right"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier import cli
from luthier.arguments.parse import parse_dict
from luthier.errors import ArgumentsError, DataError
from luthier.evaluating.questions import read_questions, read_subjects
from luthier.evaluating.run import Asker, evaluate
from luthier.serving.engine import load_engine
from luthier.training.preflight import find_problems_of_a_chat
from tests import tiny
from tests.stages.made import short_run

THINGS = ("bridge", "scroll", "neck", "peg", "belly", "rib", "back", "bow", "string", "glue")


def rows(count: int, start: int = 0) -> list[list[str]]:
    """Questions whose answers must be known; each letter is right as often as the others."""
    found = []
    for n in range(start, start + count):
        options = [THINGS[(n * k + k * k) % 10] + f" {n + k}" for k in (1, 3, 7, 9)]
        found.append([f"which part is number {n}?", *options, "ABCD"[n % 4]])
    return found


def write(folder: Path, form: str, subjects: dict[str, int], split: str = "test") -> Path:
    """A benchmark as its authors give it out."""
    header = {
        "mmlu": None,
        "ceval": ["id", "question", "A", "B", "C", "D", "answer"],
        "cmmlu": ["", "Question", "A", "B", "C", "D", "Answer"],
    }[form]
    for part, counts in (("dev", dict.fromkeys(subjects, 5)), (split, subjects)):
        place = folder / form / part
        place.mkdir(parents=True, exist_ok=True)
        for at, (name, count) in enumerate(counts.items()):
            lines = [",".join(header)] if header else []
            asked = rows(count, 1000 if part == "dev" else 100 * at)
            lines += [",".join([str(n)] * bool(header) + row) for n, row in enumerate(asked)]
            ending = "" if form == "cmmlu" else f"_{part}"
            (place / f"{name}{ending}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def arguments_of(model: Path, folder: Path, **values: Any) -> Any:
    config = {"model_name_or_path": str(model), "template": "chatml", "task": "mmlu_test"}
    config |= {"task_dir": str(folder), "n_shot": 2} | values
    return parse_dict(config, purpose="eval", check=find_problems_of_a_chat)


@pytest.mark.parametrize(
    ("form", "task"),
    [("mmlu", "mmlu_test"), ("ceval", "ceval_validation"), ("cmmlu", "cmmlu_test")],
)
def test_each_form_of_file_gives_the_same_questions(form: str, task: str, tmp_path: Path) -> None:
    split = "val" if form == "ceval" else "test"
    write(tmp_path, form, {"fine_joinery": 7, "acoustics": 4}, split)
    mapping = {"acoustics": {"name": "the acoustics", "category": "STEM"}}
    (tmp_path / form / "mapping.json").write_text(json.dumps(mapping))

    subjects = read_subjects(task, str(tmp_path), 3)

    assert [(each.name, each.title, each.category) for each in subjects] == [
        ("acoustics", "the acoustics", "STEM"),
        ("fine_joinery", "fine joinery", ""),
    ]
    assert [len(each.shots) for each in subjects] == [3, 3]
    first = subjects[1].questions[1]
    assert [first.text, *first.options, first.letters[first.answer]] == rows(2)[1]
    assert first.origin.endswith(f".csv:{3 if form != 'mmlu' else 2}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "q,a,b,c,d,A\nq,a,b,c,d,E\n",
            r"test_q\.csv:2: the answer is 'E'; expected is one of ABCD",
        ),
        ("q,a,b\n", "3 cells; expected are a question"),
        ('"q\nover two lines",a,b,c,d,A\n ,a,b,c,d,B\n', r"csv:3: the question is empty"),
        ("id,question,A,B,C,D\n0,q,a,b,c,d\n", "no answers; take the validation part"),
        ("id,question,A,B,answer\n0,q,a\n", "3 cells, and the header has 5"),
        ("", "has no question"),
    ],
)
def test_a_line_that_is_no_question_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "test_q.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=said):
        read_questions(file)


def test_what_is_absent_is_a_sentence(tmp_path: Path, llama_folder: Path) -> None:
    with pytest.raises(DataError, match="there is no test folder"):
        read_subjects("mmlu_test", str(tmp_path), 5)
    with pytest.raises(DataError, match="'mmlu_all' is unknown"):
        read_subjects("mmlu_all", str(tmp_path), 5)
    write(tmp_path, "mmlu", {"wood": 3})
    (tmp_path / "mmlu" / "dev" / "wood_dev.csv").unlink()
    (tmp_path / "mmlu" / "dev" / "metal_dev.csv").write_text("q,a,b,c,d,A\n")
    with pytest.raises(DataError, match=r"expected is dev/wood_dev\.csv"):
        read_subjects("mmlu_test", str(tmp_path), 5)
    assert read_subjects("mmlu_test", str(tmp_path), 0)[0].shots == ()
    with pytest.raises(ArgumentsError, match="task"):
        parse_dict({"model_name_or_path": str(llama_folder)}, purpose="eval")


def test_a_trained_model_knows_its_questions_and_a_random_one_guesses(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "mmlu", {"wood": 20, "glue": 20})
    learned = []
    for subject in read_subjects("mmlu_test", str(tmp_path), 0):
        for each in subject.questions:
            options = "".join(
                f"\n{a}. {b}" for a, b in zip(each.letters, each.options, strict=True)
            )
            learned.append(
                {
                    "instruction": "The following are multiple choice questions (with answers) "
                    f"about {subject.title}.\n\n{each.text}{options}\nAnswer:",
                    "output": each.letters[each.answer],
                }
            )
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(learned))
    config = short_run(llama_folder, tmp_path, "sft", file, cutoff_len=256) | {
        "finetuning_type": "full",
        "max_steps": 240,
        "per_device_train_batch_size": 10,
        "gradient_accumulation_steps": 1,
        "learning_rate": 4e-3,
        "logging_steps": 50,
    }
    luthier.train(config)
    where = [f"task_dir={tmp_path}", "task=mmlu_test", "n_shot=0", f"save_dir={tmp_path / 'saved'}"]

    cli.main(["eval", config["output_dir"], *where])

    results = json.loads((tmp_path / "saved" / "results.json").read_text())
    assert results["average"]["questions"] == 40
    assert results["average"]["accuracy"] >= 95
    assert "average" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds results already"):
        evaluate(arguments_of(llama_folder, tmp_path, save_dir=str(tmp_path / "saved")))
    write(tmp_path / "many", "mmlu", {"wood": 80, "glue": 80})
    guessed = evaluate(arguments_of(llama_folder, tmp_path / "many", n_shot=0))
    assert 20 <= guessed["average"]["accuracy"] <= 30


@pytest.mark.parametrize("reading", ["letter", "text"])
def test_what_is_chosen_is_the_likeliest_of_each_asked_alone(
    reading: str, llama_folder: Path, tmp_path: Path
) -> None:
    write(tmp_path, "mmlu", {"wood": 9})
    arguments = arguments_of(llama_folder, tmp_path, reading=reading)
    (subject,) = read_subjects("mmlu_test", str(tmp_path), 2)
    engine = load_engine(arguments)
    asker = Asker(engine, arguments)
    examples = [*asker.examples(subject)]
    plain = load_engine(arguments).model
    expected = []
    for example in examples:
        sums = []
        labels = iter(example.labels)
        for ids in example.sequences():
            wanted = torch.tensor([next(labels) for _ in ids])
            with torch.no_grad():
                logps = plain(torch.tensor([[*map(int, ids)]])).logits[0].log_softmax(-1)
            read = wanted[1:] >= 0
            sums.append(logps[:-1][read].gather(1, wanted[1:][read][:, None]).sum().item())
        expected.append(sums)

    found = [*asker.answers(subject)]
    assert asker.likelihood is not None
    again = [[each.logp for each in row] for row in asker.likelihood.read(examples)]

    assert [x for row in again for x in row] == pytest.approx(
        [x for r in expected for x in r], abs=1e-5
    )
    assert [each.chosen for each in found] == [row.index(max(row)) for row in expected]
    if reading == "letter":
        assert all(sum(label >= 0 for label in each.labels) == 4 for each in examples)
    assert asker.likelihood.num_computed < asker.likelihood.num_tokens / 2, "beginnings are shared"


def test_a_question_that_is_too_long_is_asked_with_fewer_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "mmlu", {"wood": 3})
    folder = tiny.save(tmp_path / "model", tiny.make_llama(max_position_embeddings=200))

    evaluate(arguments_of(folder, tmp_path, n_shot=5))

    assert "3 questions were asked with fewer than 5" in " ".join(capsys.readouterr().err.split())
