"""Ctrl-C in a real run, as a terminal sends it: to the program and all of its workers"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.checkpoints.verify import newest_valid
from luthier.training.preflight import find_problems


@pytest.mark.parametrize(
    ("trigger", "code", "last"),
    [("rows to train on", 130, "error: interrupted"), ("step 3/", 75, "stopped as asked, after")],
)
def test_a_run_ends_in_one_line_and_can_go_on(
    tmp_path: Path, llama_folder: Path, trigger: str, code: int, last: str
) -> None:
    rows = [{"instruction": f"Count to {n}.", "output": str(n)} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    folder = tmp_path / "run"
    words = [
        f"model_name_or_path={llama_folder}",
        f"dataset={tmp_path / 'rows.json'}",
        f"cache_dir={tmp_path}",
        f"output_dir={folder}",
        *("template=chatml", "do_train=true", "max_steps=100000", "logging_steps=1"),
        *("save_steps=2", "dataloader_num_workers=2", "preprocessing_num_workers=2"),
        "preprocessing_batch_size=4",
    ]
    started = subprocess.Popen(
        [sys.executable, "-m", "luthier", "train", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert started.stderr is not None
    said = []
    try:
        for line in started.stderr:
            said.append(line)
            if trigger in line:
                break
        os.killpg(started.pid, signal.SIGINT)
        said += started.communicate(timeout=60)[1].splitlines(keepends=True)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)

    assert started.returncode == code
    assert "Traceback" not in "".join(said)
    assert said[-1].startswith(last)
    if trigger.startswith("step"):
        checkpoint = newest_valid(folder)
        assert checkpoint is not None
        assert (checkpoint / "adapter_model.safetensors").is_file()
        lines = (folder / "trainer_log.jsonl").read_text().splitlines()
        assert len([json.loads(line) for line in lines]) >= 3
        from luthier.arguments.parse import parse_command_line

        assert find_problems(parse_command_line(words)) == []
