"""The parent of a run's processes: starts them, waits, and ends as they end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from luthier import console
from luthier.collector import resting_collector
from luthier.errors import LaunchError
from luthier.processes.launching.orphan import PARENT
from luthier.processes.launching.plan import Launch
from luthier.processes.launching.private import PRIVATE, kept_private


def start(launch: Launch, command: Sequence[str]) -> int:
    """Starts the processes of a run and waits for them.

    A signal that asks this process to end is passed on to them, so that they may save first; the
    third one kills them.

    Args:
        launch: how many, and what they are told.
        command: the words after `luthier`.

    Returns:
        The exit code of the process that ended first of those that failed; 70 if a signal killed
        it that did not come from here; 0 if none failed.

    Raises:
        LaunchError: if the machines do not find each other.
    """
    for note in launch.notes:
        console.info(note)
    words, private = kept_private(command)
    os.environ.update(launch.environment, **{PARENT: str(os.getpid())}, **private)
    with resting_collector():
        from luthier.processes.launching.agent import run_agent
    if "LOGLEVEL" not in os.environ:  # torch's own variable for its launcher's lines
        logging.disable(logging.ERROR)
    try:
        return run_agent(launch.words(words))
    except ConnectionError as problem:
        raise LaunchError(
            f"the processes of this run do not find each other: {problem}. Look whether "
            "MASTER_ADDR and MASTER_PORT (or RDZV_ENDPOINT) are those of machine 0, and open to "
            "the others."
        ) from problem
    finally:
        os.environ.pop(PRIVATE, None)
        logging.disable(logging.NOTSET)


def with_args_file(words: Sequence[str]) -> list[str]:
    """The words of `<script>.args`, which only a script of that name reads, before those given."""
    file = Path(sys.argv[0]).with_suffix(".args") if sys.argv[0] else None
    if file is None or not file.is_file():
        return list(words)
    return [*file.read_text(encoding="utf-8").split(), *words]
