"""Tasks of lm-eval, whose model asks the reads and the generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier import console
from luthier.arguments.record import Arguments
from luthier.checkpoints.files import write_json
from luthier.errors import ArgumentsError
from luthier.optional import need

FILE_NAME = "results.json"


def evaluate_tasks(arguments: Arguments, folder: Path | None) -> dict[str, Any]:
    """Runs tasks of lm-eval, prints its table, and writes `results.json` to a folder.

    Its own tasks, and those of YAML files in `task_dir`; `n_shot` counts where it is given.

    Raises:
        MissingPackage: if lm-eval is not installed.
        ArgumentsError: if it knows no such task.
    """
    need("lm_eval", f"task: {arguments.evaluating.task}")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from luthier.evaluating.harness_model import HarnessModel
    from luthier.serving.engine import load_engine

    asked = arguments.evaluating
    place = Path(asked.task_dir).expanduser()
    manager = TaskManager(include_path=str(place) if place.is_dir() else None)
    names = [name.strip() for name in str(asked.task).split(",")]
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ArgumentsError(
            f"task: lm-eval knows no {', '.join(unknown)}, neither among its own tasks nor in "
            f"{place}. Benchmarks of local files are mmlu, ceval and cmmlu with a part, such as "
            "mmlu_test."
        )
    results: Any = simple_evaluate(
        HarnessModel(load_engine(arguments), arguments),
        tasks=names,
        num_fewshot=asked.n_shot if arguments.given("n_shot") else None,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=0,
    )
    kept = {name: results[name] for name in ("results", "versions", "n-shot", "higher_is_better")}
    print(make_table(results).rstrip())
    if folder is not None:
        console.info(f"written: {write_json(folder / FILE_NAME, kept)}")
    return kept
