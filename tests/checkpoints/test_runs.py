"""whole runs: what their checkpoints say, and how they are taken up again"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import luthier
from luthier.checkpoints import publish
from luthier.checkpoints.manifest import read_manifest
from luthier.checkpoints.publish import finished_model
from luthier.checkpoints.verify import newest_valid, verify
from luthier.errors import ArgumentsError, SaveError


@pytest.fixture
def config(llama_folder: Path, tmp_path: Path) -> dict[str, object]:
    rows = [{"instruction": f"Count to {n}.", "output": str(n)} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return {
        "model_name_or_path": str(llama_folder),
        "dataset": str(tmp_path / "rows.json"),
        "template": "chatml",
        "do_train": True,
        "cutoff_len": 64,
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "lora_dropout": 0.1,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
    }


EVALUATED = {
    "val_size": 8,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}
"""Its loss falls from each evaluation to the next."""


class Stop(TrainerCallback):
    """Ends the run after a step, as nobody's request would."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_step_end(self, args, state, control, **others):
        control.should_training_stop = state.global_step == self.last


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def are_equal(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "train_results.json").read_text())


def test_a_manifest_says_what_the_checkpoint_was_made_with(config):
    folder = luthier.train(config | {"hub_token": "hf_secret"}).output_dir

    checkpoints = [folder / f"checkpoint-{step}" for step in (2, 4, 6)]
    found = [read_manifest(each) for each in checkpoints]
    assert [each.step for each in found] == [2, 4, 6]
    assert len({each.run_id for each in found}) == 1
    assert found[0].data["rows"] == 40
    assert (found[0].examples_per_step, found[0].seed, found[0].strategy) == (4, 42, "single")
    assert found[0].settings["learning_rate"] == 5e-3
    assert found[0].loss is not None
    assert {"luthier", "torch", "transformers"} <= found[0].versions.keys()
    assert "hf_secret" not in (checkpoints[0] / "MANIFEST.json").read_text()
    assert [verify(each) for each in [*checkpoints, folder]] == [[]] * 4
    assert finished_model(folder).end == "steps"
    assert not list(folder.rglob("training_args.bin"))


def test_a_run_cut_off_behind_its_last_step_only_writes_the_model(config, tmp_path, capsys):
    folder = luthier.train(config).output_dir
    straight = tmp_path / "straight"
    shutil.copytree(folder, straight)
    for name in ("MANIFEST.json", "adapter_model.safetensors", "train_results.json"):
        (folder / name).unlink()
    capsys.readouterr()

    again = luthier.train(config)

    said = capsys.readouterr().err
    assert "only the model is not yet in" in said
    assert "step 1/6" not in said
    assert are_equal(folder, straight)
    assert finished_model(folder) is not None
    assert results(folder)["train_loss"] == pytest.approx(results(straight)["train_loss"])
    assert "MANIFEST.json" in {path.name for path in folder.iterdir()}
    assert len([line for line in again.log_history if "loss" in line]) == 6

    capsys.readouterr()
    luthier.train(config)
    assert "nothing to train" in capsys.readouterr().err


def test_the_mean_loss_of_a_resumed_run_is_that_of_all_its_steps(config, tmp_path):
    straight = luthier.train(config | {"output_dir": str(tmp_path / "straight")})

    luthier.train(config, callbacks=[Stop(4)])
    resumed = luthier.train(config)

    assert resumed.metrics["train_loss"] == pytest.approx(straight.metrics["train_loss"])
    assert are_equal(resumed.output_dir, straight.output_dir)


def test_a_run_that_is_made_longer_goes_on_and_ends_anew(config, capsys):
    folder = luthier.train(config).output_dir
    before = weights(folder)
    capsys.readouterr()

    luthier.train(config | {"max_steps": 8})

    said = capsys.readouterr().err
    assert "max_steps: 6 then, 8 now" in said
    assert f"going on from {folder / 'checkpoint-6'}" in said
    assert finished_model(folder).step == 8
    after = weights(folder)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_other_data_and_other_settings_are_refused_before_a_model_is_loaded(config, capsys):
    luthier.train(config, callbacks=[Stop(2)])
    rows = json.loads(Path(str(config["dataset"])).read_text())
    Path(str(config["dataset"])).write_text(json.dumps(rows[::-1]))
    capsys.readouterr()

    with pytest.raises(ArgumentsError, match="encoded training data: 40 rows then, 40 now"):
        luthier.train(config)
    with pytest.raises(ArgumentsError, match=r"learning_rate: 0\.005 then, 0\.001 now"):
        luthier.train(config | {"learning_rate": 1e-3})
    assert "trainable params" not in capsys.readouterr().err

    luthier.train(config | {"learning_rate": 1e-3, "resume_allow_changes": True})
    assert "resume_allow_changes: the encoded training data" in capsys.readouterr().err


class Groups(TrainerCallback):
    """Keeps the settings of the optimizer's groups at each step."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[float, float, float]]] = {}

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **others):
        self.seen[state.global_step + 1] = [
            (group["lr"], group["weight_decay"], group["betas"][1])
            for group in optimizer.param_groups
        ]


def test_what_the_optimizer_keeps_is_that_of_the_run_that_goes_on(config, tmp_path, capsys):
    plus = config | {"lr_scheduler_type": "linear", "loraplus_lr_ratio": 4.0}
    new = {"learning_rate": 1e-3, "weight_decay": 0.2, "adam_beta2": 0.9, "loraplus_lr_ratio": 8.0}
    luthier.train(plus, callbacks=[Stop(2)])
    straight, resumed = Groups(), Groups()

    luthier.train(plus | new | {"output_dir": str(tmp_path / "straight")}, callbacks=[straight])
    luthier.train(plus | new | {"resume_allow_changes": True}, callbacks=[resumed])

    assert resumed.seen == {step: straight.seen[step] for step in (3, 4, 5, 6)}
    rates = {lr for lr, _, _ in resumed.seen[3]}
    assert sorted(rates) == pytest.approx([1e-3 * 4 / 6, 8e-3 * 4 / 6])
    said = capsys.readouterr().err
    assert "initial_lr: 0.005 then, 0.001 now" in said
    assert "weight_decay: 0.0 then, 0.2 now" in said


def test_logs_and_checkpoints_come_as_often_as_the_run_that_goes_on_says(config):
    luthier.train(config | {"logging_steps": 2}, callbacks=[Stop(2)])

    result = luthier.train(config | {"logging_steps": 1, "save_steps": 3})

    logged = [line["step"] for line in result.log_history if "loss" in line]
    assert logged == [2, 3, 4, 5, 6]
    assert {path.name for path in result.output_dir.glob("checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-6",
    }


def test_the_best_checkpoint_is_known_by_its_published_name_and_found_in_a_moved_folder(
    config, tmp_path
):
    best = {
        "val_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.0,  # the first evaluation stays the best
    }
    folder = luthier.train(config | best, callbacks=[Stop(4)]).output_dir
    kept = {path.name for path in folder.glob("checkpoint-*")}
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    moved = tmp_path / "moved"
    folder.rename(moved)

    luthier.train(config | best | {"output_dir": str(moved)})

    assert kept == {"checkpoint-2", "checkpoint-4"}
    assert state["best_model_checkpoint"] == str(folder / "checkpoint-2")
    assert {path.name for path in moved.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-6"}
    state = json.loads((moved / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(moved / "checkpoint-2")
    assert are_equal(moved, moved / "checkpoint-2")


@pytest.mark.parametrize("is_copy", [False, True], ids=["moved", "copied"])
def test_a_run_elsewhere_that_was_cut_off_behind_its_last_step_finds_its_own_best_checkpoint(
    config, tmp_path, is_copy
):
    best = EVALUATED | {"save_total_limit": 2, "greater_is_better": True}  # the first is the best
    folder = luthier.train(config | best).output_dir
    elsewhere = tmp_path / "elsewhere"
    (shutil.copytree if is_copy else shutil.move)(folder, elsewhere)
    for name in ("MANIFEST.json", "adapter_model.safetensors", "train_results.json"):
        (elsewhere / name).unlink()

    luthier.train(config | best | {"output_dir": str(elsewhere)})

    assert are_equal(elsewhere, elsewhere / "checkpoint-2")
    state = json.loads((elsewhere / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(elsewhere / "checkpoint-2")


def test_a_best_checkpoint_that_is_lost_is_told_and_the_best_of_the_rest_is_taken(config, capsys):
    best = EVALUATED | {"greater_is_better": True}
    folder = luthier.train(config | best, callbacks=[Stop(4)]).output_dir
    shutil.rmtree(folder / "checkpoint-2")
    capsys.readouterr()

    luthier.train(config | best)

    assert "checkpoint-2, is not there any more" in capsys.readouterr().err
    assert are_equal(folder, folder / "checkpoint-6")


def test_one_checkpoint_is_kept_where_the_newest_is_the_best(config):
    best = EVALUATED | {"save_total_limit": 1}
    seen = []

    class Listed(TrainerCallback):
        def on_save(self, args, state, control, **others):
            seen.append({path.name for path in Path(args.output_dir).glob("checkpoint-*")})

    luthier.train(config | best, callbacks=[Listed()])

    assert seen == [{"checkpoint-2"}, {"checkpoint-4"}, {"checkpoint-6"}]


def test_a_run_that_patience_ended_is_finished(config, capsys):
    patient = {
        "val_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "learning_rate": 0.0,
        "early_stopping_steps": 2,
    }
    folder = luthier.train(config | patient).output_dir
    assert finished_model(folder).end == "patience"
    capsys.readouterr()

    again = luthier.train(config | patient)

    assert "early_stopping_steps ended it after 3 steps" in capsys.readouterr().err
    assert len([line for line in again.log_history if "loss" in line]) == 3


def test_a_checkpoint_of_another_program_is_gone_on_with_after_a_warning(config, tmp_path, capsys):
    straight = luthier.train(config | {"output_dir": str(tmp_path / "straight")})
    folder = luthier.train(config, callbacks=[Stop(2)]).output_dir
    for name in ("MANIFEST.json", "checkpoint-2/MANIFEST.json"):
        (folder / name).unlink()
    state = folder / "checkpoint-2" / "trainer_state.json"
    values = json.loads(state.read_text())
    del values["stateful_callbacks"]["LuthierTrainer"]
    state.write_text(json.dumps(values))
    capsys.readouterr()

    luthier.train(config)

    assert "another program wrote it" in capsys.readouterr().err
    assert are_equal(folder, straight.output_dir)


def test_a_run_without_room_ends_after_so_many_failures_with_the_numbers(
    config, monkeypatch, capsys
):
    usage = shutil.disk_usage
    monkeypatch.setattr(publish.shutil, "disk_usage", lambda path: usage(path)._replace(free=1024))

    with pytest.raises(SaveError, match=r"0 MiB are free and \d+ MiB are needed \(2 of") as caught:
        luthier.train(config | {"max_failed_saves": 2})

    folder = Path(str(config["output_dir"]))
    assert caught.value.exit_code == 28
    assert "Training goes on" in capsys.readouterr().err
    assert newest_valid(folder) is None
    assert not list(folder.glob(".stage-*"))
    monkeypatch.undo()
    assert newest_valid(luthier.train(config).output_dir) == folder / "checkpoint-6"
