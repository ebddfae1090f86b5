"""runs over streamed rows: the same however they are cut, and however many processes encode"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

import luthier
from luthier.batching.steps import StepBuilder
from luthier.commands.data_verbs import prepare
from luthier.data import stream as streams
from luthier.errors import ArgumentsError, DataError
from tests.data.streams import open_stream, write_rows


@pytest.fixture
def config(llama_folder: Path, tmp_path: Path, monkeypatch) -> dict[str, object]:
    monkeypatch.setattr(streams, "ROWS_OF_A_CHUNK", 5)
    file = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": f"Count to {n % 9}.", "output": " ".join(map(str, range(n % 9 + 1)))}
        for n in range(40)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return {
        "model_name_or_path": str(llama_folder),
        "dataset": str(file),
        "template": "chatml",
        "do_train": True,
        "streaming": True,
        "buffer_size": 16,
        "cutoff_len": 64,
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "max_steps": 14,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "lr_scheduler_type": "constant",
        "report_to": "none",
    }


class Stop(TrainerCallback):
    """Ends the run after a step."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_step_end(self, args, state, control, **others):
        control.should_training_stop = state.global_step == self.last


def losses(result: luthier.training.run.RunResult) -> list[float]:
    return [record["loss"] for record in result.log_history if "loss" in record]


def test_a_cut_run_ends_with_the_losses_and_weights_of_a_whole_one(config, tmp_path):
    config |= {"val_size": 0.2, "do_eval": True}
    whole = luthier.train(config)

    config |= {"output_dir": str(tmp_path / "cut")}
    for last in (1, 5, 11):
        luthier.train(config, callbacks=[Stop(last)])
    resumed = luthier.train(config | {"dataloader_num_workers": 2})

    assert losses(resumed) == losses(whole)
    assert [log["epoch"] for log in resumed.log_history] == [
        log["epoch"] for log in whole.log_history
    ]
    name = "adapter_model.safetensors"
    first, second = (load_file(one.output_dir / name) for one in (whole, resumed))
    assert all(first[key].equal(second[key]) for key in first)
    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]


def test_a_run_can_begin_the_stream_anew_from_a_checkpoint(config, tmp_path, capsys):
    whole = luthier.train(config | {"max_steps": 3})

    config |= {"learning_rate": 0.0, "output_dir": str(tmp_path / "cut"), "max_steps": 6}
    luthier.train(config, callbacks=[Stop(3)])
    resumed = luthier.train(config | {"ignore_data_skip": True})

    first = losses(resumed)
    assert first[3:] == first[:3]
    assert first[0] == losses(whole)[0]
    assert "rows read" in capsys.readouterr().err


def test_a_step_of_another_size_goes_on_with_the_next_row(config, tmp_path):
    config |= {"learning_rate": 0.0, "disable_shuffling": True, "max_steps": 4}
    whole = luthier.train(config | {"gradient_accumulation_steps": 1, "max_steps": 8})

    config |= {"output_dir": str(tmp_path / "cut"), "resume_allow_changes": True}
    luthier.train(config, callbacks=[Stop(2)])
    resumed = luthier.train(config | {"gradient_accumulation_steps": 1, "max_steps": 6})

    assert losses(resumed)[2:] == losses(whole)[4:8]


def test_ranks_compute_each_row_of_a_step_once_and_agree_on_its_counts(tmp_path):
    file = write_rows(tmp_path, "a", 50)
    table = open_stream(tmp_path, file)
    table.start()
    whole = table.next(16)
    ranks = []
    for rank in range(3):
        stream = open_stream(tmp_path, file)
        stream.start()
        ranks.append(StepBuilder(stream, 0, 128, rank, 3))

    steps = [[builder(range(at, at + 8)) for builder in ranks] for at in (0, 8)]

    lengths = whole["num_tokens"].to_pylist()
    for at, shares in zip((0, 8), steps, strict=True):
        found = [m.num_tokens for share in shares for m in share.micro_batches]
        assert sum(found) == sum(lengths[at : at + 8])
        assert {share.num_tokens for share in shares} == {sum(lengths[at : at + 8])}
        assert len({(share.num_units, len(share.micro_batches)) for share in shares}) == 1
    assert sum(step[0].num_units for step in steps) == sum(whole["num_units"].to_pylist())


def test_texts_are_streamed_in_blocks(config, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"Line {n} tells what stands on line {n}." for n in range(60)))
    config |= {"stage": "pt", "dataset": str(file), "template": None, "cutoff_len": 32}
    config |= {"max_steps": 7}
    whole = luthier.train(config)

    config |= {"output_dir": str(tmp_path / "cut")}
    luthier.train(config, callbacks=[Stop(5)])

    assert losses(luthier.train(config)) == losses(whole)


def test_packed_conversations_are_streamed(config):
    result = luthier.train(config | {"packing": True, "max_steps": 3, "save_strategy": "no"})

    assert result.metrics["train_tokens"] > 3 * 4 * 40


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_steps": -1}, "set max_steps"),
        ({"eval_strategy": "epoch", "val_size": 3}, "eval_strategy: epoch waits for an end"),
        ({"group_by_length": True}, "group_by_length sorts all rows"),
        ({"tokenized_path": "encoded"}, "tokenized_path keeps all rows"),
    ],
)
def test_what_needs_an_end_is_refused(config, wrong, said):
    with pytest.raises(ArgumentsError, match=said):
        luthier.train(config | wrong)


def test_there_is_nothing_to_prepare(config):
    words = [f"{name}={config[name]}" for name in ("model_name_or_path", "dataset", "template")]

    with pytest.raises(ArgumentsError, match="nothing to prepare"):
        prepare.run([*words, "streaming=true", "max_steps=1"])


def test_a_checkpoint_of_a_run_without_streaming_is_not_gone_on_with(config):
    luthier.train(config | {"streaming": False, "max_steps": 1})

    with pytest.raises(ArgumentsError, match="streaming: False then, True now"):
        luthier.train(config)


def test_changed_data_is_noticed(config):
    luthier.train(config, callbacks=[Stop(2)])
    with open(str(config["dataset"]), "a") as file:
        file.write('\n{"instruction": "a", "output": "b"}')

    with pytest.raises(DataError, match=r"(?s)content of dataset.*ignore_data_skip"):
        luthier.train(config)
