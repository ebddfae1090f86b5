"""A canary in every place for secrets: what a run writes, and how its processes are called"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from luthier.secrecy import MASK
from tests import tiny
from tests.launched import LOCAL, TIMEOUT_S

CANARY = "cAnArY"

ENVIRONMENT = {
    "HF_TOKEN": f"{CANARY}-environment-hub",
    "WANDB_API_KEY": f"{CANARY}-environment-wandb",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}/environment+cloud",
}

VAULT = f"vault://me:{CANARY}-password@vault.example"
SIGNED = f"X-Amz-Credential={CANARY}-id&X-Amz-Signature={CANARY}-signature"

AT_START = '''
"""a cloud of this machine, and faults, for every Python that is started with this folder"""

import os

import fsspec
from fsspec.spec import AbstractFileSystem


class Vault(AbstractFileSystem):
    """Files of this machine at URLs with passwords and signatures, which are their paths."""

    protocol = "vault"

    @classmethod
    def _strip_protocol(cls, path):
        return path

    def _local(self, path):
        return path.partition("@")[2].partition("/")[2].partition("?")[0].join(["/", ""])

    def info(self, path, **options):
        file = self._local(path)
        if not os.path.exists(file):
            raise FileNotFoundError(path)
        return {"name": path, "size": os.path.getsize(file), "type": "file"}

    def _open(self, path, mode="rb", **options):
        return open(self._local(path), mode)


fsspec.register_implementation("vault", Vault)

if os.environ.get("FAULT"):
    from luthier.training import run

    def fail(arguments, token):
        secrets = [os.environ[name] for name in ("HF_TOKEN", "WANDB_API_KEY")]
        asked = [arguments.data.dataset, arguments.model.hf_hub_token.get_secret_value()]
        raise RuntimeError(f"no answer from {asked} for {token} {secrets}")

    def begin(arguments, **options):
        fail(arguments, arguments.training.hub_token.get_secret_value())

    def train(trainer, arguments, checkpoint, train=run._train):
        if os.environ["RANK"] == "1":
            fail(arguments, trainer.args.hub_token)
        return train(trainer, arguments, checkpoint)

    if os.environ["FAULT"] == "at the start":
        run.run = begin
    else:
        run._train = train
'''


@dataclass(frozen=True)
class Result:
    """What is left of a command: its exit code, what it said, how its children were called."""

    exit_code: int
    said: str
    children: tuple[str, ...]


class Place:
    """A folder with all that a run reads and writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        tiny.save(folder / "model", tiny.make_llama())
        rows = [{"instruction": f"Count to {n}.", "output": "1 2 3"} for n in range(8)]
        lines = "\n".join(map(json.dumps, rows))
        (folder / "data").mkdir()
        for name in ("rows", "other", "held"):
            (folder / f"data/{name}.jsonl").write_text(lines)
        entry = {"cloud_file_name": f"{VAULT}{folder}/data/rows.jsonl?{SIGNED}"}
        (folder / "data/dataset_info.json").write_text(json.dumps({"vaulted": entry}))
        (folder / "start").mkdir()
        (folder / "start/sitecustomize.py").write_text(AT_START)
        (folder / "written").mkdir()
        config = {
            "model_name_or_path": str(folder / "model"),
            "dataset_dir": str(folder / "data"),
            "allow_outside": True,  # this cloud is one that nobody knows
            "dataset": ["vaulted", f"{VAULT}{folder}/data/other.jsonl?token={CANARY}-query"],
            "eval_dataset": [f"{VAULT}{folder}/data/held.jsonl?sig={CANARY}-sig"],
            "eval_on_each_dataset": True,
            "template": "chatml",
            "do_train": True,
            "do_eval": True,
            "lora_rank": 2,
            "max_steps": 2,
            "save_steps": 1,
            "logging_steps": 1,
            "plot_loss": True,
            "report_to": "none",
            "use_cpu": True,
            "cache_dir": str(folder / "written/cache"),
            "hf_hub_token": f"{CANARY}-of-the-file",
        }
        (folder / "run.yaml").write_text(json.dumps(config))

    def train(self, *words: str, fault: str = "") -> Result:
        """Runs `luthier train run.yaml WORDS`; looks how its children are called meanwhile."""
        variables = {
            **os.environ,
            **LOCAL,
            **ENVIRONMENT,
            "PYTHONPATH": str(self.folder / "start"),
            "XDG_CACHE_HOME": str(self.folder / "written/home"),
            "FAULT": fault,
        }
        command = [sys.executable, "-m", "luthier", "train", str(self.folder / "run.yaml"), *words]
        self.runs += 1
        command.append(f"output_dir={self.folder}/written/run-{self.runs}")
        with tempfile.TemporaryFile() as said:
            process = psutil.Popen(command, env=variables, stdout=said, stderr=said)
            try:
                # a child that is forked and not yet become its own is called as its parent
                children = set(_calls_of_children(process)) - {"\0".join(command)}
            finally:
                for one in [*_children(process), process]:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                process.wait()
            said.seek(0)
            text = said.read().decode(errors="replace")
        return Result(process.returncode, text, tuple(sorted(children)))

    def leaks(self) -> list[str]:
        """Files with a canary in their content or in their name."""
        found = []
        for file in (self.folder / "written").rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            if CANARY in str(file) or CANARY.encode() in content:
                found.append(str(file.relative_to(self.folder)))
        return found


def _children(process: psutil.Process) -> Sequence[psutil.Process]:
    try:
        children: Sequence[psutil.Process] = process.children(recursive=True)
        return children
    except psutil.NoSuchProcess:
        return []


def _calls_of_children(process: psutil.Popen) -> Iterator[str]:
    """The argument lists of all processes below one, until it ends."""
    for _ in range(int(TIMEOUT_S / 0.05)):
        for one in _children(process):
            try:
                yield "\0".join(one.cmdline())
            except psutil.Error:
                continue
        try:
            process.wait(0.05)
            return
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            continue


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("secrets"))


@pytest.mark.slow
def test_processes_that_train_neither_write_secrets_nor_are_called_with_them(place):
    ended = place.train(
        *("--nproc", "2", "--hub_token", f"{CANARY}-of-the-line"),
        f"hf_hub_token={CANARY}-of-a-word",
    )

    assert ended.exit_code == 0, ended.said
    assert CANARY not in ended.said
    assert place.leaks() == []
    record = json.loads((place.folder / "written/run-1/run.json").read_text())
    assert record["arguments"]["hub_token"] == record["arguments"]["hf_hub_token"] == MASK
    assert record["settings"]["trust_remote_code"] is False
    assert record["arguments"]["dataset"][1].startswith(f"vault://{MASK}@vault.example/")
    ranks = [call for call in ended.children if "luthier\0train" in call]
    assert any(f"--hub_token\0{MASK}\0hf_hub_token={MASK}" in call for call in ranks)
    assert not [call for call in ended.children if CANARY in call]
    fetched = place.folder / "written/cache/luthier-data/fetched"
    assert {file.suffix for file in fetched.iterdir()} <= {".jsonl", ".lock"}


@pytest.mark.slow
def test_a_traceback_shows_no_secrets(place):
    ended = place.train("--hub_token", f"{CANARY}-of-the-line", fault="at the start")

    assert ended.exit_code not in (0, 2)
    assert "Traceback" in ended.said
    assert f"RuntimeError: no answer from [('vaulted', 'vault://{MASK}@vault.example/" in ended.said
    assert CANARY not in ended.said
    assert place.leaks() == []


@pytest.mark.slow
def test_ranks_that_fail_show_no_secrets(place):
    ended = place.train("--nproc", "2", f"hub_token={CANARY}-of-the-line", fault="of rank 1")

    assert ended.exit_code != 0
    assert "RuntimeError: no answer from" in ended.said
    assert " ends the run: " in ended.said
    assert CANARY not in ended.said
    assert place.leaks() == []
    assert not [call for call in ended.children if CANARY in call]


@pytest.mark.slow
def test_mistakes_of_a_user_are_told_without_secrets(place):
    ended = place.train(
        f"dataset={VAULT}/absent.jsonl?{SIGNED}",
        f"swanlab_api_key={CANARY}-of-an-old-name",
        f"learning_rate=https://me:{CANARY}-of-a-number@host",
        f"wandb_api_key={CANARY}-of-an-unknown-name",
        f"--hub_toke={CANARY}-of-a-short-name",
    )
    later = place.train(f"dataset={VAULT}/absent.jsonl?{SIGNED}")

    assert ended.exit_code == later.exit_code == 2
    for name in ("hub_toke is", "learning_rate is", "wandb_api_key is"):
        assert name in ended.said, ended.said
    assert f"absent.jsonl?X-Amz-Credential={MASK}&X-Amz-Signature={MASK}" in later.said
    assert CANARY not in ended.said + later.said
    assert place.leaks() == []
