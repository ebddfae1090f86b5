"""how a launcher ends: as its processes end, restarted or not"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.architecture.house import ROOT
from tests.launched import Ended, run_command


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("lives of ranks")
    words = [sys.executable, "-m", "tests.processes.launcher_lives", folder]
    return folder, run_command(words, folder=ROOT)


def codes(ended: Ended) -> dict[str, int]:
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_exit_code_is_that_of_the_processes(lives):
    found = codes(lives[1])

    assert found["well"] == 0
    assert found["mistake"] == 2
    assert found["stopped"] == 75


def test_a_process_that_was_killed_is_named(lives):
    assert codes(lives[1])["killed"] == 70
    assert "error: process 1 of this machine" in lives[1].stderr
    assert "was killed by SIGKILL" in lives[1].stderr


def test_what_a_restart_may_mend_is_restarted(lives):
    folder, ended = lives

    assert codes(ended)["once"] == 0
    assert len(list(folder.glob("once-1-*"))) == 2
    assert "ended with code 1; all processes are started again (1 of 2)" in ended.stderr


def test_what_would_end_the_same_way_is_not(lives):
    folder, _ = lives

    assert not list(folder.glob("mistake-1-*"))
    assert not list(folder.glob("stopped-1-*"))


def test_a_closed_terminal_lets_the_processes_save(lives):
    assert len(list(lives[0].glob("saved-SIGTERM-*"))) == 2


def test_the_third_signal_kills(lives):
    assert codes(lives[1])["deaf"] > 128


def test_the_launcher_has_no_traceback_of_its_own(lives):
    assert "Traceback" not in lives[1].stderr
    assert "ChildFailedError" not in lives[1].stderr
