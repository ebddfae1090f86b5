"""what `luthier stop` and `luthier save` print, and when they refuse"""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from luthier.checkpoints.control_files import answer, asked, take_up
from luthier.checkpoints.lock import OutputLock
from luthier.cli import main


@pytest.fixture
def lock(tmp_path):
    held = OutputLock(tmp_path)
    held.acquire()
    yield held
    held.release()


@pytest.mark.parametrize("word", ["stop", "save"])
def test_a_run_is_asked_by_a_file_in_its_folder(word, lock, tmp_path, capsys):
    assert main([word, str(tmp_path)]) == 0

    assert asked(tmp_path) == {word}
    assert capsys.readouterr().out.startswith("asked process ")


@pytest.mark.parametrize("word", ["stop", "save"])
def test_asking_a_folder_where_nothing_goes_on_is_a_mistake(word, tmp_path, capsys):
    assert main([word, str(tmp_path)]) == 2
    assert main([word]) == 2
    assert main([word, "--waits", str(tmp_path)]) == 2

    told = capsys.readouterr().err
    assert "no run is going on" in told
    assert "expected one folder, found none" in told


@pytest.mark.parametrize(
    ("checkpoint", "code", "said"),
    [("checkpoint-4", 0, "checkpoint-4"), (None, 2, "could not be written")],
)
@pytest.mark.parametrize("word", ["stop", "save"])
def test_waiting_tells_what_became_of_it(word, checkpoint, code, said, lock, tmp_path, capsys):
    def do() -> None:
        while word not in asked(tmp_path):
            pass
        take_up(tmp_path, word)
        answer(tmp_path, {"step": 4, "checkpoint": checkpoint})
        lock.release()

    run = threading.Thread(target=do)
    run.start()

    assert main([word, str(tmp_path), "--wait"]) == code

    run.join()
    told = capsys.readouterr()
    assert said in told.out + told.err


def test_asking_imports_nothing_heavy():
    program = (
        "import sys; from luthier.commands import save, stop; "
        "print({'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules))"
    )

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert found.stdout == "set()\n"
