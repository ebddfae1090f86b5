"""one of two ranks is killed or stopped: all end soon, all stacks told, and a restart goes on

    python -m tests.chaos.ranks --trials 5 --kinds kill stop --launchers torchrun luthier

Each trial is a real run of a tiny model with LoRA on two gloo ranks, struck at a random moment.
Afterwards the same command is given again; its losses, weights and optimizer must equal, bit for
bit, those of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import launched
from tests.chaos import trial

KINDS: Mapping[str, signal.Signals] = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

LAUNCHERS = ("torchrun", "luthier", "deepspeed")

DDP_TIMEOUT_S = 10

GONE_WITHIN_S = 60.0

LONGEST_RUN_S = 300.0
"""A generous time; nothing is measured by it."""

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Attributes:
        step: the last that was logged when the signal was sent.
        victim: the rank that it was sent to.
        gone_s: seconds until all processes were gone.
        code: of the launcher.
        problems: what was not as it shall be.
        log: what the processes wrote after the signal and before.
    """

    step: int
    victim: int
    gone_s: float
    code: int
    problems: list[str]
    log: str


def arguments(workshop: trial.Workshop, folder: Path, **more: object) -> dict[str, Any]:
    """A run on two ranks that saves every two steps."""
    return workshop.arguments(folder, ddp_timeout=DDP_TIMEOUT_S, **more)


def command(launcher: str, words: Sequence[str], max_restarts: int = 0) -> list[str]:
    """The command line that starts two ranks.

    Args:
        launcher: one of `LAUNCHERS`.
        words: of the run, as `trial.words_of` gives them.
        max_restarts: how often the launcher starts them again.
    """
    port = str(launched.free_port())
    program = str(SOURCE / "train.py")
    match launcher:
        case "torchrun":
            options = [f"--master-port={port}", f"--max-restarts={max_restarts}"]
            run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *options]
            return [*run, program, *words[1:]]
        case "luthier":
            options = ["--nproc", "2", "--max_restarts", str(max_restarts)]
            return [sys.executable, "-m", "luthier", *words, *options]
        case _:
            starter = str(Path(sys.executable).with_name("deepspeed"))
            return [
                starter,
                "--include=localhost:0,1",
                f"--master_port={port}",
                program,
                *words[1:],
            ]


@contextmanager
def started(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher with its ranks; all of them are killed when the context ends."""
    fresh = {**os.environ, **launched.LOCAL, "LOCAL_SIZE": "2", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            list(words), env=fresh, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        for each in descendants(process.pid):
            with suppress(psutil.Error):
                each.kill()
        process.kill()
        process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """All processes that one has started, and theirs."""
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def find_rank(launcher: subprocess.Popen[bytes], rank: int) -> psutil.Process:
    """The process of a rank: the first whose environment says so; what it starts comes later."""
    for each in descendants(launcher.pid):
        with suppress(psutil.Error):
            if each.environ().get("RANK") == str(rank):
                return each
    raise AssertionError(f"no process of rank {rank}")


def num_logged(folder: Path) -> int:
    """How many steps a run has logged."""
    file = folder / "trainer_log.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for_step(launcher: subprocess.Popen[bytes], folder: Path, step: int, log: Path) -> None:
    """Waits until a run has logged a step."""
    end = time.monotonic() + LONGEST_RUN_S
    while num_logged(folder) < step:
        assert time.monotonic() < end, log.read_text()[-3000:]
        assert launcher.poll() is None, log.read_text()[-3000:]
        time.sleep(0.005)


def strike(launcher: subprocess.Popen[bytes], rank: int, number: signal.Signals) -> float:
    """Sends a signal to a rank; seconds until the launcher and all it had started were gone."""
    victim = find_rank(launcher, rank)
    processes = descendants(launcher.pid)
    begun = time.monotonic()
    victim.send_signal(number)
    try:
        launcher.wait(LONGEST_RUN_S)
    except subprocess.TimeoutExpired:
        return float("inf")
    _, alive = psutil.wait_procs(processes, timeout=GONE_WITHIN_S)
    return float("inf") if alive else time.monotonic() - begun


def try_once(
    workshop: trial.Workshop,
    folder: Path,
    expected: Path,
    kind: str,
    launcher: str,
    chance: random.Random,
) -> Outcome:
    """Strikes a rank at a random moment, and gives the same command again."""
    output, log = folder / "run", folder / "log"
    folder.mkdir(parents=True)
    words = trial.words_of(arguments(workshop, output))
    step, victim = chance.randint(1, 36), chance.randint(0, 1)
    with started(command(launcher, words), log) as process:
        wait_for_step(process, output, step, log)
        time.sleep(chance.uniform(0, 0.1))
        step = num_logged(output)
        gone_s = strike(process, victim, KINDS[kind])
        code = process.returncode if process.returncode is not None else 0
    told = log.read_text()
    problems = []
    if gone_s > GONE_WITHIN_S:
        problems.append(f"not all processes were gone within {GONE_WITHIN_S:.0f} s")
    if code == 0:
        problems.append("exit code 0")
    problems += missing_words(told, victim)
    problems += finish(command(launcher, words), output, expected, folder / "again")
    return Outcome(step, victim, gone_s, code, problems, told)


def missing_words(log: str, victim: int) -> list[str]:
    """What the log of a run whose rank was lost does not say."""
    wanted = [f"rank {victim} is lost", "What to do:"]
    wanted += [f"rank {rank}  host " for rank in range(2)]
    problems = [f"the log does not say {words!r}" for words in wanted if words not in log]
    both = "main thread of ranks 0, 1 stood" in log
    each = all(f"main thread of rank {rank} stood" in log for rank in range(2))
    return problems if both or each else [*problems, "the log does not hold both stacks"]


def finish(words: Sequence[str], output: Path, expected: Path, log: Path) -> list[str]:
    """What is wrong with the run that goes on."""
    with started(words, log) as process:
        process.wait(LONGEST_RUN_S)
    told = log.read_text()
    if process.returncode != 0:
        return [f"the restart ended with {process.returncode}:\n{told[-3000:]}"]
    return [*trial.differences(expected, output)]


def restart_by_itself(
    workshop: trial.Workshop, folder: Path, expected: Path, launcher: str, chance: random.Random
) -> Outcome:
    """Kills a rank of a run whose launcher may start all ranks once more."""
    output, log = folder / "run", folder / "log"
    folder.mkdir(parents=True)
    words = trial.words_of(arguments(workshop, output))
    step, victim = chance.randint(3, 36), chance.randint(0, 1)
    with started(command(launcher, words, max_restarts=1), log) as process:
        wait_for_step(process, output, step, log)
        step = num_logged(output)
        begun = time.monotonic()
        find_rank(process, victim).kill()
        process.wait(LONGEST_RUN_S)
        code = process.returncode
    told = log.read_text()
    problems = [] if code == 0 else [f"ended with {code}:\n{told[-3000:]}"]
    if code == 0:
        problems += [*missing_words(told, victim), *trial.differences(expected, output)]
    return Outcome(step, victim, time.monotonic() - begun, code, problems, told)


def uninterrupted(workshop: trial.Workshop, folder: Path) -> Path:
    """The output folder of a run that nothing happens to."""
    output, log = folder / "expected", folder / "expected.log"
    words = command("torchrun", trial.words_of(arguments(workshop, output)))
    with started(words, log) as process:
        process.wait(LONGEST_RUN_S)
    assert process.returncode == 0, log.read_text()[-3000:]
    return output


def main() -> None:
    """Runs the trials that the command line asks for, and ends with 1 if any has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--trials", type=int, default=5, help="for each kind and launcher")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=["torchrun"])
    parser.add_argument("--restarts", type=int, default=1, help="trials of max_restarts 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print the log of each first trial")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workshop = trial.stand_alone(folder / "workshop")
        expected = uninterrupted(workshop, folder)
        for launcher in asked.launchers:
            for kind in asked.kinds:
                for number in range(asked.trials):
                    where = folder / f"{launcher}-{kind}-{number}"
                    outcome = try_once(workshop, where, expected, kind, launcher, chance)
                    failed += report(f"{launcher} {kind} {number}", outcome)
                    if asked.show and number == 0:
                        print(outcome.log)
            for number in range(asked.restarts if launcher != "deepspeed" else 0):
                where = folder / f"{launcher}-restart-{number}"
                outcome = restart_by_itself(workshop, where, expected, launcher, chance)
                failed += report(f"{launcher} max_restarts=1 {number}", outcome)
    sys.exit(1 if failed else 0)


def report(name: str, outcome: Outcome) -> bool:
    """Prints what came of a trial; whether it failed."""
    print(
        f"{name}: rank {outcome.victim} after step {outcome.step}, all gone after "
        f"{outcome.gone_s:.1f} s, exit code {outcome.code}, "
        + ("; ".join(outcome.problems) or "as it shall be")
    )
    if outcome.problems:
        print(outcome.log[-6000:])
    return bool(outcome.problems)


if __name__ == "__main__":
    main()
