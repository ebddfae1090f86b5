"""From `luthier train` to its first step, against the bare import of the libraries it stands on.

A tiny model, data that is encoded already, one step; the peer is a Python that only imports torch,
transformers and peft. Both are processes of their own, in turns; luthier's time ends with its
first logged step, the peer's when the last import is done. Then one more run shows where luthier's
time goes. The rows end in benchmarks/startup.csv.

    python benchmarks/startup.py --pairs 5
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import figures, material, sides

IMPORTED = "imported"

IMPORT = f"import torch, transformers, peft; print({IMPORTED!r}, flush=True)"

FIRST_STEP = "step 1/1 | loss"

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "luthier", "matplotlib")

PHASES = {
    "luthier.arguments.parse:parse_command_line": "arguments",
    "luthier.modeling.tokenizer:load_tokenizer": "tokenizer",
    "luthier.templates.fit:fit_tokenizer": "tokenizer",
    "luthier.data.pipeline:load_datasets": "data from the cache",
    "luthier.modeling.loader:load_model": "model",
    "luthier.training.run:_make_trainer": "trainer",
    "luthier.training.layout:choose_layout": "self-check",
    "luthier.modeling.memory:choose_checkpointing": "memory estimate",
    "luthier.training.report:write_run_record": "run.json",
    "luthier.training.run:_train": "first step",
}
"""Functions of luthier -> the phase that their time is, what they import left out."""


def main(words: list[str] | None = None) -> None:
    """Runs both in turns, prints the ratio and the phases, keeps a row."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    with tempfile.TemporaryDirectory() as folder:
        config = prepare(Path(folder), options.threads)
        train = [sys.executable, "-m", "luthier", "train", str(config)]
        first_line(train, FIRST_STEP, options)  # encodes the data
        found: dict[str, list[float]] = {"luthier": [], "import": []}
        for _, side in sides.turns(list(found), options.pairs):
            if side == "luthier":
                found[side].append(first_line(train, FIRST_STEP, options))
            else:
                found[side].append(first_line([sys.executable, "-c", IMPORT], IMPORTED, options))
        phases = sides.run("startup:phases", {"config": str(config)}, options.threads).value
    ratio = figures.ratios(found["luthier"], found["import"])
    ours, bare = (figures.Spread.of(found[side]) for side in ("luthier", "import"))
    print(f"luthier train {ours} s to the first step, bare import {bare} s: {ratio}x")
    for name, seconds in phases.items():
        print(f"    {name:<24} {seconds:6.2f} s")
    table.add(
        {
            "clock": "cpu" if options.cpu_time else "wall",
            "pairs": options.pairs,
            "threads": options.threads,
            "luthier_s": round(ours.median, 2),
            "import_s": round(bare.median, 2),
            **ratio.columns("ratio"),
            "phases": " | ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items()),
        }
    )
    table.draw(
        "seconds to the first step over those of the bare import",
        lambda row: f"{row['when'][:16]}, {row['clock']} time",
        "ratio",
        line=1.0,
    )


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5, help="runs of each")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, not wall time (Linux)"
    )
    figures.add_options(parser, __file__, threads=1)
    return parser.parse_args(words)


def prepare(folder: Path, threads: int) -> Path:
    """A tiny model, 200 rows and a configuration of one step."""
    model = folder / "tiny"
    sides.run(
        "material:make_model",
        {"model": "tiny", "dtype": "float32", "folder": str(model)},
        threads,
    )
    config = folder / "run.json"
    config.write_text(
        json.dumps(
            {
                "model_name_or_path": str(model),
                "dataset": str(material.write_rows(folder / "rows.json", 200)),
                "template": material.TEMPLATES["tiny"],
                "do_train": True,
                "output_dir": str(folder / "run"),
                "overwrite_output_dir": True,
                "cache_dir": str(folder / "cache"),
                "max_steps": 1,
                "logging_steps": 1,
                "save_strategy": "no",
                "use_cpu": True,
            }
        )
    )
    return config


def first_line(words: list[str], start: str, options: argparse.Namespace) -> float:
    """Seconds from the start of a process to its first line that begins so.

    Raises:
        SystemExit: with what it said, when there is no such line.
    """
    variables = {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    begun, found = time.perf_counter(), None
    said: list[str] = []
    with subprocess.Popen(
        words,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found is None and line.startswith(start):
                found = time.perf_counter() - begun
                if options.cpu_time:
                    found = cpu_seconds(process.pid)
    if found is None or process.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{''.join(said)}")
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a running process, from Linux's /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Stopwatch:
    """Seconds by label, each moment counted once: what is inside a label is not the outer one's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._labels = ["other"]
        self._since = time.perf_counter()

    def enter(self, label: str) -> None:
        """From now on time is the label's."""
        self.charge()
        self._labels.append(label)

    def leave(self) -> None:
        """From now on time is that of the label before."""
        self.charge()
        self._labels.pop()

    def charge(self) -> None:
        """Adds the time since the last change."""
        now = time.perf_counter()
        label = self._labels[-1]
        self.seconds[label] = self.seconds.get(label, 0.0) + now - self._since
        self._since = now

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time the label's."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.enter(label)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return call


def phases(config: str) -> dict[str, float]:
    """Seconds of `luthier train` by what it does, until its first step is logged.

    Imports are the time of the library that asks for them; what is no library of the list counts
    for the one that imports it.
    """
    watch = Stopwatch()
    is_patched: set[str] = set()
    plain_import, plain_import_module = builtins.__import__, importlib.import_module

    def patch() -> None:
        for place, label in PHASES.items():
            module, _, name = place.partition(":")
            there = sys.modules.get(module)
            if place not in is_patched and there is not None and hasattr(there, name):
                is_patched.add(place)
                setattr(there, name, watch.timed(label, getattr(there, name)))

    def label_of(name: str, level: int) -> str | None:
        root = name.partition(".")[0]
        return f"import {root}" if level == 0 and root in LIBRARIES else None

    def import_watched(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        label = label_of(name, level)
        if label is None:
            return plain_import(name, globals, locals, fromlist, level)
        watch.enter(label)
        try:
            found = plain_import(name, globals, locals, fromlist, level)
        finally:
            watch.leave()
        if name.startswith("luthier"):
            patch()
        return found

    def import_module_watched(name: str, package: str | None = None) -> Any:
        label = label_of(package or name, 0)
        if label is None:
            return plain_import_module(name, package)
        return watch.timed(label, plain_import_module)(name, package)

    builtins.__import__, importlib.import_module = import_watched, import_module_watched
    seconds: dict[str, float] = {}
    try:
        from luthier import cli, console

        say = console.info

        def listen(text: str) -> None:
            if text.startswith(FIRST_STEP) and not seconds:
                watch.charge()
                seconds.update(watch.seconds)
            say(text)

        console.info = listen
        code = cli.main(["train", config])
    finally:
        builtins.__import__, importlib.import_module = plain_import, plain_import_module
    if code != 0 or not seconds:
        raise SystemExit(f"luthier train ended with {code}")
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    main()
