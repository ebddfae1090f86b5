"""`luthier data check`: names every bad row, and says how long rows are and what stands twice."""

from __future__ import annotations

import json
import sys
from io import TextIOWrapper

from luthier.errors import MissingArguments

SUMMARY = "name every bad row by file and line: luthier data check CONFIG.yaml|FILE ..."

USAGE = """\
usage: luthier data check CONFIG.yaml [FILE ...] [name=value ...] [--all] [--json]
       luthier data check FILE ... [name=value ...] [--all] [--json]

Looks at every row of the data sets of a configuration, or of data files, which then stand in place
of the configuration's. No weights are read and no GPU is used. What training would leave out is an
error; what it would take, though it seldom is meant, is a note. With a tokenizer (a configuration,
or model_name_or_path=FOLDER) it also says how many tokens rows have and what cutoff_len costs.

  --all   shows every row of each kind, not only the first
  --json  prints one JSON document instead of text

The exit code is 1 when there are errors, 0 otherwise."""

NUM_SHOWN = 5
"""How many rows of each kind are shown."""


def run(argv: list[str]) -> int:
    """Checks what the words name."""
    if not argv:
        raise MissingArguments([f"luthier data check needs to know what to look at.\n{USAGE}"])
    flags = {"--all", "--json"} & set(argv)
    words = [word for word in argv if word not in flags]

    from luthier.arguments.parse import data_words, parse_command_line
    from luthier.training.preflight import find_problems_of_the_data

    arguments = parse_command_line(
        data_words(words), purpose="data", check=find_problems_of_the_data, look_for_args_file=False
    )

    from luthier.inspecting.audit import audit

    if arguments.model.model_name_or_path:
        from luthier.training.encoder import load_stage

        stage = load_stage(arguments)
    else:
        from luthier.stages.stage import STAGES

        stage = STAGES.get(arguments.finetuning.stage)(arguments)
    report = audit(arguments, stage, None if "--all" in flags else NUM_SHOWN)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if "--json" in flags:
        print(json.dumps(report.as_dict(), ensure_ascii=False, indent=1))
    else:
        print("\n".join(report.lines()))
    return report.exit_code
