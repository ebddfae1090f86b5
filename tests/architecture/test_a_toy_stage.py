"""a stage of one's own is one file: its record, its examples, its loss and its metric"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.architecture.test_one_file import drop, luthier, write_config

STAGE = '''\
"""A toy over pairs: of two answers the better one becomes the likelier."""
from __future__ import annotations

from dataclasses import dataclass

from luthier.data.check import RowError
from luthier.example import Example
from luthier.records import Origin
from luthier.stages.stage import STAGES, Loss, Stage


@dataclass(frozen=True)
class Choice:
    asked: str
    better: str
    worse: str
    origin: Origin


@STAGES.register("toy")
class Choosing(Stage):
    record = Choice
    train_metrics = eval_metrics = ("margin",)

    def read(self, values, reading, origin):
        missing = [name for name in ("asked", "better", "worse") if name not in values]
        if missing:
            raise RowError(missing[0], "is absent", "A row has asked, better and worse.")
        return Choice(values["asked"], values["better"], values["worse"], origin)

    def examples(self, records):
        made = []
        for record in records:
            ids, labels, lengths = [], [], []
            prompt = self.tokenizer(record.asked)["input_ids"]
            for answer in (record.better, record.worse):
                answer = self.tokenizer(answer)["input_ids"]
                ids += prompt + answer
                labels += [-100] * len(prompt) + answer
                lengths.append(len(prompt) + len(answer))
            made.append([Example(ids, labels, num_units=1, lengths=tuple(lengths))])
        return made

    def loss(self, model, batch):
        from torch.nn.functional import logsigmoid

        from luthier.modeling.reads import read_logps

        logps_N = read_logps(model, batch).logps_N
        sums_S = logps_N.new_zeros(len(batch.ends)).index_add(0, batch.sequences, logps_N)
        if not batch.examples:  # a rank with nothing to do
            return Loss(sums_S.sum() * 0)
        better, worse = sums_S.view(-1, 2).unbind(1)  # the pair stayed together
        margins = (better - worse).detach()
        return Loss(-logsigmoid(better - worse).sum(), {"margin": (margins.sum(), len(margins))})
'''

ROWS = [
    {"asked": f"Who are you, {n}?", "better": "a luthier" + "!" * (n % 3), "worse": "nobody"}
    for n in range(17)
]


@pytest.mark.slow
def test_a_stage_over_pairs_trains_on_two_ranks(tmp_path: Path, llama_folder: Path):
    source = drop(tmp_path, "stages/toy.py", STAGE)
    config = write_config(
        tmp_path,
        llama_folder,
        stage="toy",
        gradient_accumulation_steps=2,
        tokens_per_micro_batch=64,
        metric_for_best_model="margin",
        eval_strategy="steps",
        eval_steps=3,
        val_size=4,
        learning_rate=0.02,
    )
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")

    done = luthier(source, "train", config, "nproc=2")

    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "out" / "trainer_log.jsonl").read_text(encoding="utf-8")
    lines = list(map(json.loads, text.splitlines()))
    steps = [line for line in lines if "loss" in line]
    assert [line["current_steps"] for line in steps] == [1, 2, 3]
    assert steps[2]["loss"] < steps[0]["loss"]
    assert steps[2]["margin"] > steps[0]["margin"]
    (evaluated, *_) = [line for line in lines if "eval_margin" in line]
    assert evaluated["eval_margin"] > steps[0]["margin"]


def test_a_row_that_is_no_pair_is_named_before_anything_is_loaded(
    tmp_path: Path, llama_folder: Path
):
    source = drop(tmp_path, "stages/toy.py", STAGE)
    config = write_config(tmp_path, llama_folder, stage="toy", max_bad_rows=0)
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS, {"asked": "?"}]), encoding="utf-8")

    done = luthier(source, "train", config)

    assert done.returncode != 0
    assert "rows.json" in done.stderr
    assert "better: is absent" in done.stderr
