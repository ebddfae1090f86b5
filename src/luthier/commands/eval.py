"""luthier eval: how many questions of a benchmark a model answers right."""

from __future__ import annotations

from luthier.commands.chat import read_arguments

SUMMARY = "ask a model the questions of a benchmark: luthier eval FOLDER task=mmlu_test"

USAGE = """\
usage: luthier eval RUN_FOLDER task=mmlu_test [task_dir=FOLDER] [name=value ...]
       luthier eval CONFIG.yaml [name=value ...]

RUN_FOLDER is the output_dir of a finished run, or a checkpoint in it. The questions of MMLU, C-Eval
or CMMLU lie in task_dir as their authors give them out: a CSV file for each subject, in dev, val
and test. n_shot questions of dev stand before each one, the first ones.

reading=letter asks for the letter of an option, reading=text for the option itself; the two give
other scores, so results name it. results.json is written to save_dir."""


def run(argv: list[str]) -> int:
    """Asks the model that the words name."""
    from luthier.training.preflight import find_problems_of_a_chat

    arguments = read_arguments(
        argv,
        check=find_problems_of_a_chat,
        purpose="eval",
        absent=f"luthier eval needs to know which model is asked.\n{USAGE}",
    )

    from luthier.evaluating.run import evaluate

    evaluate(arguments)
    return 0
