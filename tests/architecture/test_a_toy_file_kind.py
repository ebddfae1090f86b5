"""a kind of file of one's own is one file in `readers/`, read whole and streamed, on two ranks"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.test_one_file import drop, losses_of_three_steps, luthier, write_config

READER = '''\
"""A toy: a question and its answer a line, an arrow between them."""
from luthier.data.check import RowProblem
from luthier.data.reader import READERS, Reader, Row, cut_lines, read_lines


def parse(line, origin):
    question, arrow, answer = line.decode().strip().partition(" -> ")
    if not arrow:
        return RowProblem(str(origin), "", "no arrow", "Write it between question and answer.")
    return Row({"instruction": question, "output": answer}, origin)


@READERS.register(".toy")
class ToyReader(Reader):
    def rows(self, file, position=None):
        return read_lines(file, position, parse)

    def chunks(self, file):
        return cut_lines(file)
'''


@pytest.mark.slow
def test_a_kind_of_file_is_one_file(tmp_path: Path, llama_folder: Path):
    source = drop(tmp_path, "data/readers/toy.py", READER)
    rows = tmp_path / "rows.toy"
    rows.write_text("".join(f"who are you, {n} -> a luthier\n" for n in range(16)) + "no one\n")
    given = {"dataset": str(rows), "max_bad_rows": 1, "train_sampling_strategy": "sequential"}

    config = write_config(tmp_path, llama_folder, **given)
    kept = losses_of_three_steps(source, config)
    streamed = luthier(source, "train", config, "streaming=true", f"output_dir={tmp_path / 'two'}")
    checked = luthier(source, "data", "check", str(rows)).stdout

    assert len(kept) == 3
    assert kept[0] > kept[2]
    assert streamed.returncode == 0, streamed.stderr[-3000:]
    assert "17 rows" in checked
    assert "no arrow" in checked
    assert f"{rows}:17" in checked
