"""One process for each side of a comparison, the sides in turns."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """What a side gives back.

    Attributes:
        value: what its function returned.
        log: what it said on the way, standard output and error together.
    """

    value: dict[str, Any]
    log: str

    def lines_with(self, *words: str) -> list[str]:
        """The lines of the log that hold one of the words."""
        return [line for line in self.log.splitlines() if any(word in line for word in words)]


RANKS = ("-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
"""Words of Python that start several processes which know of each other."""


def run(
    function: str,
    options: Mapping[str, Any],
    threads: int,
    environment: Mapping[str, str] = {},
    num_ranks: int = 1,
) -> Outcome:
    """Calls a function in a process of its own.

    Args:
        function: "module:name" below benchmarks/; it returns what JSON can hold.
        options: its keyword arguments, likewise.
        threads: that torch computes with.
        environment: further variables of the process.
        num_ranks: as many processes call it, each as a rank; they return the same.

    Raises:
        SystemExit: with the end of its log, when it fails.
    """
    variables = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **environment,
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        launcher = [*RANKS, f"--nproc-per-node={num_ranks}"] if num_ranks > 1 else []
        python = [sys.executable, *launcher, "-m", "benchmarks.sides"]
        words = [*python, function, json.dumps(options)]
        done = subprocess.run(
            [*words, str(answer)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not answer.exists():
            end = "\n".join(done.stdout.splitlines()[-15:])
            raise SystemExit(
                f"{function} {json.dumps(options)} ended with {done.returncode}:\n{end}"
            )
        return Outcome(json.loads(answer.read_text(encoding="utf-8")), done.stdout)


def turns(sides: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Every side once a round; each round begins with another side."""
    for each in range(rounds):
        first = each % len(sides)
        for side in [*sides[first:], *sides[:first]]:
            yield each, side


def answer() -> None:
    """What a side's process runs."""
    name, options, file = sys.argv[1:]
    module, _, function = name.partition(":")
    value = getattr(importlib.import_module(f"benchmarks.{module}"), function)(
        **json.loads(options)
    )
    Path(file).write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    answer()
