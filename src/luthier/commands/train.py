"""`luthier train`: trains, evaluates and predicts as a configuration says."""

from __future__ import annotations

SUMMARY = "train, evaluate and predict: luthier train CONFIG.yaml [name=value ...]"

HELP = """\
luthier train CONFIG.yaml [name=value ...]
luthier train CONFIG.yaml [--name value ...]
luthier train --name value ...

Trains, evaluates and predicts, as the arguments say. CONFIG is a YAML or JSON file of them.
Where there are several accelerators it starts a process for each; `--nproc N` says how many."""


def run(argv: list[str]) -> int:
    """Runs what the words ask for."""
    if {"-h", "--help"} & set(argv):
        from luthier.arguments.schema import help_page

        print(HELP)
        print(help_page())
        return 0
    from luthier.arguments.parse import parse_command_line
    from luthier.processes.launcher import (
        end_with_parent,
        find_launch,
        secrets_from_environment,
        start,
        with_args_file,
    )
    from luthier.training.preflight import find_problems

    end_with_parent()
    argv = secrets_from_environment(argv)
    arguments = parse_command_line(argv, check=find_problems)
    launch = find_launch(arguments)
    if launch is not None:
        return start(launch, ["train", *with_args_file(argv)])
    from luthier.training.run import run as run_training

    run_training(arguments, owns_process=True)
    return 0
