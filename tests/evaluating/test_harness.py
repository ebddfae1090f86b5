from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.arguments.parse import parse_dict
from luthier.errors import ArgumentsError

pytest.importorskip("lm_eval")

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {rows}}}
validation_split: validation
doc_to_text: "{{{{question}}}} Answer:"
"""

CHOICES = """\
output_type: multiple_choice
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""

ROLLING = """\
output_type: loglikelihood_rolling
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
"""

ANSWERS = """\
output_type: generate_until
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    lines = [
        {"question": f"The luthier carves {n}?", "options": [" maple", f" a neck {n}"], "answer": 0}
        for n in range(12)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, kind in (("choices", CHOICES), ("rolling", ROLLING), ("answers", ANSWERS)):
        text = TASK.format(name=f"luthier_{name}", rows=rows) + kind
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_likelihoods_and_answers_are_those_of_lm_evals_own_model(llama_folder: Path, tasks: Path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from luthier.evaluating.harness_model import HarnessModel
    from luthier.serving.engine import load_engine

    given = {"model_name_or_path": str(llama_folder), "task": "x", "infer_dtype": "float32"}
    arguments = parse_dict(given, purpose="eval")
    engine = load_engine(arguments)
    theirs = HFLM(pretrained=load_engine(arguments).model, tokenizer=engine.tokenizer)
    names = ["luthier_choices", "luthier_rolling", "luthier_answers"]

    ours, expected = (
        simple_evaluate(
            model,
            tasks=names,
            num_fewshot=0,
            task_manager=TaskManager(include_path=str(tasks)),
            bootstrap_iters=0,
        )["samples"]
        for model in (HarnessModel(engine, arguments), theirs)
    )

    for name in names:
        assert len(ours[name]) == 12
        for one, other in zip(ours[name], expected[name], strict=True):
            if name == "luthier_answers":
                assert one["resps"] == other["resps"]
                continue
            # a sum of some twenty float32 numbers near 6 each: 1e-6 of a token's
            tokens = 24 if name == "luthier_rolling" else 4
            for (mine,), (their,) in zip(one["resps"], other["resps"], strict=True):
                mine, their = (
                    (float(each[0]), each[1]) if isinstance(each, tuple | list) else (each, None)
                    for each in (mine, their)
                )
                assert mine[0] == pytest.approx(their[0], abs=1e-6 * tokens)
                assert mine[1] == their[1]


def test_an_unknown_task_is_named(llama_folder: Path, tasks: Path):
    from luthier.evaluating.run import evaluate

    given = {"model_name_or_path": str(llama_folder), "task": "no_such", "task_dir": str(tasks)}

    with pytest.raises(ArgumentsError, match="lm-eval knows no no_such"):
        evaluate(parse_dict(given, purpose="eval"))
