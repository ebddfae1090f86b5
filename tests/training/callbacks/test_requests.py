"""runs that are asked to stop or to save, and what becomes of them"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

import luthier
from luthier.checkpoints.control_files import FOLDER, ask
from luthier.checkpoints.verify import newest_valid, verify
from luthier.errors import Stopped
from tests.chaos.trial import Workshop, differences, log_of

EVALUATED = {"val_size": 8, "do_eval": True, "eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    return Workshop(folder, {"max_steps": 8, "save_steps": 100, "num_train_epochs": 1}).make()


@pytest.fixture(scope="module")
def whole(workshop, tmp_path_factory):
    """The folder of a run that nobody asked anything."""
    made: dict[str, Path] = {}

    def run(**more: object) -> Path:
        key = repr(sorted(more.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            luthier.train(workshop.arguments(made[key], **more))
        return made[key]

    return run


class At(TrainerCallback):
    """Does something once, when an event of a step comes."""

    def __init__(self, step: int, act, event: str = "on_step_begin") -> None:
        self.step, self.act, self.event = step, act, event
        self.is_done = False

    def __getattribute__(self, name: str):
        if name.startswith("on_") and name == self.event:
            return self.hear
        return super().__getattribute__(name)

    def hear(self, args, state, control, **others):
        begun = state.global_step + (self.event == "on_step_begin")
        if begun == self.step and not self.is_done:
            self.is_done = True
            self.act(Path(args.output_dir))


def terminate(output_dir: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)  # another thread hears it


def interrupt(output_dir: Path) -> None:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.2)


def ask_to_stop(output_dir: Path) -> None:
    ask(output_dir, "stop")


def ask_to_save(output_dir: Path) -> None:
    ask(output_dir, "save")


def stopped(arguments: dict[str, object], *callbacks: TrainerCallback) -> Stopped:
    with pytest.raises(Stopped) as caught:
        luthier.train(arguments, callbacks=callbacks)
    return caught.value


@pytest.mark.parametrize("act", [terminate, interrupt, ask_to_stop])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(act, workshop, whole, tmp_path):
    cut = tmp_path / "cut"
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    end = stopped(workshop.arguments(cut), At(3, act))

    assert end.checkpoint == cut / "checkpoint-3"
    assert end.exit_code == 75
    assert verify(end.checkpoint) == []
    assert not list(cut.glob("*.safetensors"))
    assert not (cut / "trainer_state.json").exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert "after step 3 of 8" in str(end)
    luthier.train(workshop.arguments(cut))
    assert differences(whole(), cut) == []


def test_a_run_that_is_asked_for_a_checkpoint_goes_on(workshop, tmp_path):
    result = luthier.train(
        workshop.arguments(tmp_path, save_only_model=True), callbacks=[At(5, ask_to_save)]
    )

    asked = tmp_path / "checkpoint-5"
    assert verify(asked) == []
    assert (asked / "optimizer.pt").exists()  # whatever save_only_model says of the others
    assert not (tmp_path / "checkpoint-8" / "optimizer.pt").exists()
    answer = json.loads((tmp_path / FOLDER / "save.answered").read_text())
    assert answer == {"step": 5, "checkpoint": "checkpoint-5"}
    assert max(step for step, _ in log_of(result.output_dir)) == 8


@pytest.mark.parametrize(
    ("more", "at", "event"),
    [
        ({"restore_callback_states_from_checkpoint": True}, 4, "on_step_begin"),
        ({}, 4, "on_prediction_step"),
        ({}, 8, "on_prediction_step"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, 4, "on_step_begin"),
        ({"save_steps": 2, "load_best_model_at_end": True}, 4, "on_prediction_step"),
        ({"save_steps": 2, "load_best_model_at_end": True}, 8, "on_step_begin"),
        ({"save_strategy": "best", "metric_for_best_model": "eval_loss"}, 4, "on_step_begin"),
    ],
)
def test_an_evaluation_that_was_not_waited_for_is_made_first(
    more, at, event, workshop, whole, tmp_path
):
    cut = tmp_path / "cut"
    more = EVALUATED | more

    end = stopped(workshop.arguments(cut, **more), At(at, ask_to_stop, event))

    assert end.checkpoint == cut / f"checkpoint-{at}"
    saved = json.loads((end.checkpoint / "trainer_state.json").read_text())["log_history"]
    assert not any("eval_loss" in line and line["step"] == at for line in saved)
    luthier.train(workshop.arguments(cut, **more))
    assert differences(whole(**more), cut) == []
    assert (cut / "eval_results.json").exists()


@pytest.mark.parametrize(
    ("at", "act"), [(3, ask_to_stop), (4, ask_to_stop), (8, ask_to_stop), (4, ask_to_save)]
)
def test_what_is_due_at_an_epochs_end_is_not_lost(at, act, workshop, whole, tmp_path):
    # 8 rows, 4 steps an epoch
    epochs = {
        "max_samples": 16,
        "val_size": 8,
        "per_device_train_batch_size": 1,
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
    }
    cut = tmp_path / "cut"
    assert log_of(whole(**epochs)).keys() >= {(4, "loss"), (4, "eval_loss"), (8, "eval_loss")}

    if act is ask_to_stop:
        end = stopped(workshop.arguments(cut, **epochs), At(at, act))
        assert end.checkpoint == cut / f"checkpoint-{at}"
    else:
        luthier.train(workshop.arguments(cut, **epochs), callbacks=[At(at, act)])
        for later in range(at + 1, 9):  # as if it had been killed
            folder = cut / f"checkpoint-{later}"
            if folder.exists():
                folder.rename(tmp_path / f"gone-{later}")
        (cut / "MANIFEST.json").unlink()

    luthier.train(workshop.arguments(cut, **epochs))

    assert differences(whole(**epochs), cut) == []


def test_a_run_that_is_asked_behind_its_last_step_keeps_its_model(workshop, tmp_path):
    end = stopped(
        workshop.arguments(tmp_path, do_eval=True, val_size=8),
        At(8, ask_to_stop, "on_train_end"),
    )

    assert "all 8 steps" in str(end)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "eval_results.json").exists()


def test_a_checkpoint_that_fails_is_not_told_as_good(workshop, tmp_path, monkeypatch):
    from luthier.checkpoints import saver

    def fail(*_):
        raise OSError(28, "No space left on device")

    arguments = workshop.arguments(tmp_path, save_steps=2)
    ruin = At(5, lambda _: monkeypatch.setattr(saver, "publish", fail))

    end = stopped(arguments, ruin, At(5, ask_to_stop))

    assert end.checkpoint == tmp_path / "checkpoint-4" == newest_valid(tmp_path)
    assert "could not be written" in str(end)
    answer = json.loads((tmp_path / FOLDER / "stop.answered").read_text())
    assert answer["checkpoint"] is None


def test_a_request_that_an_earlier_run_left_is_forgotten(workshop, tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "stop").touch()

    luthier.train(workshop.arguments(tmp_path, max_steps=2))

    assert not (tmp_path / FOLDER).exists()
