"""runs that meet numbers that are none: stopped or skipped in their step, never saved"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import luthier
from luthier.errors import NonFiniteError
from luthier.training import nonfinite
from tests import tiny
from tests.training import faults


@pytest.fixture
def config(llama_folder, tmp_path):
    return faults.config_of(llama_folder, faults.write_rows(tmp_path), tmp_path / "run")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def assert_all_saved_is_finite(folder: Path) -> None:
    files = list(folder.rglob("*.safetensors"))
    for file in files:
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file


def tokens_of(text: str) -> list[int]:
    return tiny.make_tokenizer()(text)["input_ids"]


LONG = tokens_of(" 6 7")
"""What only rows 8 and 9 of each nine hold."""


def test_a_loss_that_is_none_ends_the_run_in_its_step_and_names_the_rows(config):
    with pytest.raises(NonFiniteError) as raised:
        faults.train(config, faults.not_a_number_at(5, LONG))

    told = str(raised.value)
    folder = Path(config["output_dir"])
    assert raised.value.exit_code == 65
    assert "step 5 gives numbers that are not finite" in told
    assert "the loss of micro-batch" in told
    assert "nan" in told
    lines = [int(line.rpartition(":")[2]) for line in told.splitlines() if "rows.jsonl:" in line]
    assert lines
    assert all((line - 1) % 9 in (7, 8) for line in lines), "computed alone, these are to blame"
    assert checkpoints(folder) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert_all_saved_is_finite(folder)
    log = (folder / "trainer_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["current_steps"] for line in log] == [1, 2, 3, 4]


def test_a_weight_that_is_none_is_named(config):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **others):
            if state.global_step == 3:
                name, weight = next(
                    each for each in model.named_parameters() if "lora_B" in each[0]
                )
                weight.data[0, 0] = math.nan
                self.name = name

    spoil = Spoil()
    with pytest.raises(NonFiniteError, match="step 4 ") as raised:
        luthier.train(config | {"on_nonfinite": "skip"}, callbacks=[spoil])

    assert f"the weights were not finite already: {spoil.name} (1 of " in str(raised.value)
    assert checkpoints(Path(config["output_dir"]))[-1] == "checkpoint-3"
    assert_all_saved_is_finite(Path(config["output_dir"]))


def test_a_gradient_that_is_none_is_traced_to_its_parameter_and_rows(config):
    class Spoil(TrainerCallback):
        """One parameter's gradient is infinite in step 3 wherever a micro-batch is long."""

        def on_train_begin(self, args, state, control, model=None, **others):
            for self.name, weight in model.named_parameters():
                if weight.requires_grad:
                    weight.register_hook(lambda gradient: gradient * self.factor)
                    break
            self.state, self.factor = state, 1.0

    spoil = Spoil()

    def change(loss, batch, step):
        is_bad = spoil.state.global_step == 2 and batch.ends.numel() and LONG[-1] in batch.targets
        spoil.factor = math.inf if torch.is_grad_enabled() and is_bad else 1.0
        return loss

    with faults.losses_through(lambda loss, batch: change(loss, batch, 0)):
        with pytest.raises(NonFiniteError, match="step 3 ") as raised:
            luthier.train(config | {"max_grad_norm": 0.0}, callbacks=[spoil])

    told = str(raised.value)
    assert f"has a finite loss and a gradient that is not: {spoil.name}\n" in told
    assert "rows.jsonl:" in told


def test_steps_are_left_out_and_counted_and_the_others_learn_as_if_nothing_were(config):
    config |= {"on_nonfinite": "skip", "logging_steps": 2, "lr_scheduler_type": "linear"}

    result = faults.train(config, faults.not_a_number_at(5, LONG))

    folder = Path(config["output_dir"])
    log = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    logged = [line for line in log if "loss" in line]
    assert [line["loss"] is None for line in logged] == [False, False, True, False]
    assert [line.get("skipped_steps") for line in logged] == [None, None, 1, 1]
    assert [line["lr"] for line in logged] == pytest.approx(
        [5e-3 * left / 8 for left in (7, 5, 3, 1)]
    )
    history = [record["loss"] for record in result.log_history if "loss" in record]
    assert math.isnan(history[2])
    assert all(math.isfinite(loss) and loss > 1 for loss in (*history[:2], history[3]))
    assert math.isfinite(result.metrics["train_loss"])
    assert json.loads((folder / "train_results.json").read_text())["train_skipped_steps"] == 1
    assert len(checkpoints(folder)) == 8
    assert_all_saved_is_finite(folder)
    weights = [
        load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (4, 5)
    ]
    moments = [
        torch.load(folder / f"checkpoint-{step}" / "optimizer.pt")["state"] for step in (4, 5)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(
        torch.equal(moments[0][n][key], moments[1][n][key])
        for n in moments[0]
        for key in moments[0][n]
    )


def test_more_than_three_in_a_row_end_the_run(config):
    def change(loss, batch, step):
        return faults.not_a_number_at(step, [])(loss, batch, step) if step >= 3 else loss

    with pytest.raises(NonFiniteError, match="step 6 ") as raised:
        faults.train(config | {"on_nonfinite": "skip"}, change)

    assert "3 steps before it were left out" in str(raised.value)
    assert_all_saved_is_finite(Path(config["output_dir"]))


def test_a_cut_run_goes_on_counting(config):
    config |= {"on_nonfinite": "skip"}

    def change(loss, batch, step):
        return faults.not_a_number_at(step, [])(loss, batch, step) if step in (2, 3) else loss

    faults.train(config | {"max_steps": 3}, change)
    state = json.loads(
        (Path(config["output_dir"]) / "checkpoint-3" / "trainer_state.json").read_text()
    )

    numbers = state["stateful_callbacks"]["LuthierTrainer"]["attributes"]["numbers"]
    assert (numbers["num_skipped"], numbers["in_a_row"]) == (2, 2)


def test_weights_that_are_none_are_not_saved(config):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **others):
            if state.global_step == 4:
                weight = next(each for each in model.parameters() if each.requires_grad)
                weight.data.flatten()[0] = math.inf

    with pytest.raises(NonFiniteError, match="after step 4 a trained weight is not finite"):
        luthier.train(config, callbacks=[Spoil()])

    assert checkpoints(Path(config["output_dir"]))[-1] == "checkpoint-3"
    assert_all_saved_is_finite(Path(config["output_dir"]))


@pytest.mark.parametrize("settings", [{"streaming": True, "buffer_size": 16}, {"packing": True}])
def test_rows_of_streams_and_packed_rows_are_named(config, settings):
    def change(loss, batch, step):
        return faults.not_a_number_at(step, LONG)(loss, batch, step)

    with pytest.raises(NonFiniteError) as raised:
        faults.train(config | settings, change)

    named = [
        line.rpartition(":")[2] for line in str(raised.value).splitlines() if ".jsonl:" in line
    ]
    assert named
    for lines in named:  # a packed row has several
        assert any((int(line) - 1) % 9 in (7, 8) for line in lines.split(", "))


def test_a_spike_is_told_with_its_step_and_rows(config, capsys, monkeypatch):
    monkeypatch.setattr(nonfinite, "SpikeWatch", lambda *_: Watch())

    class Watch:
        losses = ()

        def see(self, loss):
            self.losses = (*self.losses, loss)
            return 1.5 if len(self.losses) == 3 else None

    luthier.train(config | {"max_steps": 4})

    told = capsys.readouterr().err
    assert "warning: the loss of step 3 is " in told
    assert told.count("1.5 was usual before; rows: ") == 1
    assert told.partition("was usual before; rows: ")[2].splitlines()[0].count("rows.jsonl:") == 8
