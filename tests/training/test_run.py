"""whole runs on a tiny model: what they leave behind, how they stop, how they go on"""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer_callback import CallbackHandler

import luthier
from luthier.errors import ArgumentsError, DataError, NonFiniteError
from luthier.modeling import dtypes
from luthier.training import preflight

EVENTS = sorted(
    name for name in vars(CallbackHandler) if name.startswith("on_") and name != "on_push_begin"
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.json"
    file.write_text(
        json.dumps(
            [
                {
                    "instruction": f"Count to {n % 9}.",
                    "output": " ".join(map(str, range(n % 9 + 1))),
                }
                for n in range(40)
            ]
        )
    )
    return file


@pytest.fixture
def config(llama_folder: Path, rows: Path, tmp_path: Path) -> dict[str, object]:
    return {
        "model_name_or_path": str(llama_folder),
        "dataset": str(rows),
        "template": "chatml",
        "do_train": True,
        "cutoff_len": 64,
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


class Listener(TrainerCallback):
    """Hears every event; stops the run after `last` steps."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last
        self.heard: list[str] = []

    def __getattribute__(self, name: str):
        if name.startswith("on_"):
            return lambda args, state, control, **kwargs: self.hear(name, state, control, kwargs)
        return super().__getattribute__(name)

    def hear(self, name, state, control, kwargs):
        self.heard.append(name)
        self.given = kwargs
        if name == "on_step_end" and state.global_step == self.last:
            control.should_training_stop = True
        return control


def losses(result: luthier.training.run.RunResult) -> list[float]:
    return [record["loss"] for record in result.log_history if "loss" in record]


def test_a_run_leaves_everything_behind_that_users_expect(config):
    config |= {
        "val_size": 8,
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "plot_loss": True,
        "compute_accuracy": True,
    }

    result = luthier.train(config)

    folder = result.output_dir
    left = {path.name for path in folder.iterdir()}
    assert left >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "trainer_log.jsonl",
        "train_results.json",
        "eval_results.json",
        "all_results.json",
        "training_loss.png",
        "training_eval_loss.png",
        "README.md",
        "run.json",
        "checkpoint-3",
        "checkpoint-6",
    }
    assert not list(folder.rglob("training_args.bin"))
    log = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert 0 <= result.metrics["eval_accuracy"] <= 1
    assert json.loads((folder / "all_results.json").read_text())["eval_loss"] == pytest.approx(
        result.metrics["eval_loss"]
    )


def test_every_callback_event_arrives_with_the_objects_of_the_run(config):
    listener = Listener()
    config |= {
        "val_size": 8,
        "do_predict": True,
        "predict_with_generate": True,
        "max_new_tokens": 3,
        "do_sample": False,
        "tokens_per_micro_batch": 40,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
    }

    luthier.train(config, callbacks=[listener])

    assert sorted(set(listener.heard)) == EVENTS
    assert listener.heard.count("on_step_end") == 6
    assert listener.heard.count("on_substep_end") > 0
    assert {"model", "processing_class", "optimizer", "lr_scheduler"} <= listener.given.keys()
    assert listener.given["train_dataloader"] is not None
    assert listener.given["eval_dataloader"] is not None


def test_a_callback_can_stop_the_run(config):
    result = luthier.train(config, callbacks=[Listener(last=2)])

    assert len(losses(result)) == 2
    assert (result.output_dir / "adapter_model.safetensors").exists()


def test_a_run_says_what_it_computed_and_how(config, capsys):
    config |= {"gradient_checkpointing": True, "tokens_per_micro_batch": 60}

    result = luthier.train(config)

    said = capsys.readouterr().err
    numbers = json.loads((result.output_dir / "train_results.json").read_text())
    engine = json.loads((result.output_dir / "run.json").read_text())["engine"]
    logged = [record for record in result.log_history if "loss" in record]
    assert numbers["train_tokens"] == logged[-1]["total_tokens"]
    assert 0 < numbers["train_tokens_learned"] < numbers["train_tokens"]
    assert numbers["train_tokens_computed"] > 0
    assert numbers["train_micro_batches_per_step"] > 1
    assert numbers["total_flos"] > 6 * numbers["train_tokens_learned"]
    assert all(record["mfu"] > 0 for record in logged)
    assert engine["tokens_per_micro_batch"] == 60
    assert engine["gradient_checkpointing"]
    assert f"micro-batches of up to 60 tokens, layout {engine['layout']}" in said
    assert f"{numbers['train_tokens']:,} real tokens" in said


def test_the_adapter_loads_with_plain_peft_and_gives_the_same_logits(config, llama_folder):
    result = luthier.train(config)

    base = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(base, result.output_dir).eval()
    ids = torch.arange(1, 20).unsqueeze(0)
    with torch.no_grad():
        # the run's model adds the low-rank part in its own order of sums
        torch.testing.assert_close(
            plain(ids).logits, result.model.eval()(ids).logits, rtol=1e-5, atol=1e-6
        )


def test_an_interrupted_run_goes_on_where_its_checkpoint_stands(config, tmp_path):
    config |= {"lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 3, "max_steps": 9}
    straight = luthier.train(config | {"output_dir": str(tmp_path / "straight")})

    luthier.train(config, callbacks=[Listener(last=3)])
    resumed = luthier.train(config)

    assert losses(resumed) == losses(straight)
    ours, expected = (
        load_file(each.output_dir / "adapter_model.safetensors") for each in (resumed, straight)
    )
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_log_between_checkpoints_is_the_mean_of_the_same_steps_after_resuming(config, tmp_path):
    config |= {"save_strategy": "steps", "save_steps": 3, "logging_steps": 4, "max_steps": 8}
    straight = luthier.train(config | {"output_dir": str(tmp_path / "straight")})

    luthier.train(config, callbacks=[Listener(last=3)])
    resumed = luthier.train(config)

    assert losses(resumed) == losses(straight)


def test_a_resumed_step_has_the_size_that_is_asked_for_and_the_change_is_said(config, capsys):
    config |= {"save_strategy": "steps", "save_steps": 3}
    luthier.train(config, callbacks=[Listener(last=3)])
    capsys.readouterr()

    luthier.train(config | {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 4})
    assert "examples of a step" not in capsys.readouterr().err

    changed = config | {"per_device_train_batch_size": 4, "max_steps": 9}
    with pytest.raises(ArgumentsError, match="examples of a step: 4 then, 8 now"):
        luthier.train(changed)
    resumed = luthier.train(changed | {"resume_allow_changes": True})
    assert "examples of a step: 4 then, 8 now" in capsys.readouterr().err
    assert resumed.log_history[-1]["epoch"] == pytest.approx(9 / 5)


@pytest.mark.parametrize(
    "change", [{"lora_rank": 4}, {"finetuning_type": "full"}, {"optim": "sgd"}], ids=str
)
def test_a_checkpoint_of_other_settings_is_named_before_loading(config, change):
    config |= {"save_strategy": "steps", "save_steps": 3}
    luthier.train(config, callbacks=[Listener(last=3)])

    with pytest.raises(ArgumentsError, match=rf"{next(iter(change))}: .* then, .* now"):
        luthier.train(config | change)

    assert len(losses(luthier.train(config | change | {"overwrite_output_dir": True}))) == 6


def test_a_checkpoint_without_an_optimizer_goes_on_with_a_warning(config, capsys):
    config |= {"save_strategy": "steps", "save_steps": 3, "save_only_model": True}
    luthier.train(config, callbacks=[Listener(last=3)])
    assert "no optimizer" not in capsys.readouterr().err

    resumed = luthier.train(config)

    assert "checkpoint-3 holds no optimizer" in capsys.readouterr().err
    assert len(losses(resumed)) == 6


def test_patience_that_was_used_up_is_not_given_again_by_resuming(config, tmp_path):
    config |= {
        "val_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 12,
        "learning_rate": 1e-30,  # nothing gets better
        "early_stopping_steps": 3,
    }
    straight = luthier.train(config | {"output_dir": str(tmp_path / "straight")})

    luthier.train(config, callbacks=[Listener(last=3)])
    resumed = luthier.train(config)

    assert len(losses(resumed)) == len(losses(straight)) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
        ({"optim": "schedule_free_adamw"}, "schedulefree"),
        ({"metric_for_best_model": "rouge", "val_size": 8, "eval_strategy": "epoch"}, "loss"),
        (
            {
                "eval_dataset": "{rows},{rows}",
                "eval_on_each_dataset": True,
                "eval_strategy": "epoch",
                "early_stopping_steps": 1,
            },
            "rows.json_loss",
        ),
    ],
    ids=["optim", "schedule-free", "metric", "each"],
)
def test_what_would_fail_in_the_middle_fails_before_loading(config, rows, monkeypatch, wrong, said):
    monkeypatch.setattr(preflight, "is_installed", lambda module: False)
    wrong = {key: v.format(rows=rows) if isinstance(v, str) else v for key, v in wrong.items()}

    with pytest.raises(ArgumentsError, match=said):
        luthier.train(config | wrong)


def test_a_finished_run_is_left_as_it_is(config):
    config |= {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    first = luthier.train(config)
    weights = load_file(first.output_dir / "adapter_model.safetensors")

    again = luthier.train(config)

    after = load_file(again.output_dir / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert not losses(again)[6:]


def test_a_folder_with_weights_and_no_checkpoint_is_not_trained_into(config):
    luthier.train(config)

    with pytest.raises(ArgumentsError, match="overwrite_output_dir"):
        luthier.train(config)

    assert losses(luthier.train(config | {"overwrite_output_dir": True}))


def test_evaluation_alone_does_not_depend_on_the_batch_size(config, rows):
    config |= {"do_train": False, "do_eval": True, "eval_dataset": str(rows)}
    del config["dataset"]

    small, large = (
        luthier.train(config | {"per_device_eval_batch_size": size}).metrics["eval_loss"]
        for size in (1, 16)
    )

    assert small == pytest.approx(large, rel=1e-6)


def test_rows_without_answers_are_answered_but_not_evaluated(config, tmp_path):
    questions = tmp_path / "questions.json"
    questions.write_text(
        json.dumps([{"instruction": each, "output": ""} for each in ("Who?", "Why?")])
    )
    config |= {
        "do_train": False,
        "do_predict": True,
        "predict_with_generate": True,
        "eval_dataset": str(questions),
        "max_new_tokens": 2,
    }
    del config["dataset"]

    luthier.train(config)
    with pytest.raises(DataError, match="do_eval: no row"):
        luthier.train(config | {"do_eval": True})

    written = Path(str(config["output_dir"])) / "generated_predictions.jsonl"
    assert len(written.read_text().splitlines()) == 2


def test_training_stops_early_and_the_best_weights_come_back(config):
    config |= {
        "val_size": 8,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 30,
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "load_best_model_at_end": True,
        "early_stopping_steps": 2,
        "do_eval": True,
    }

    result = luthier.train(config)

    seen = [record["eval_loss"] for record in result.log_history if "eval_loss" in record]
    assert len(losses(result)) < 30
    assert result.metrics["eval_loss"] == pytest.approx(min(seen), rel=1e-6)


@pytest.mark.parametrize("is_emulated", [True, False])
def test_bfloat16_works_on_every_cpu_and_lowers_the_loss(config, is_emulated, monkeypatch):
    monkeypatch.setattr(dtypes, "is_emulated", lambda dtype, use_cpu: is_emulated)

    result = luthier.train(config | {"bf16": True, "max_steps": 12, "use_cpu": True})

    record = json.loads((result.output_dir / "run.json").read_text())
    assert losses(result)[-1] < losses(result)[0]
    assert record["arguments"]["bf16"] is True
    assert any("float32" in note for note in record["notes"]) == is_emulated


def test_a_loss_that_is_no_number_ends_the_run_and_files_stay_json(config):
    wild = {"learning_rate": 1e30, "max_grad_norm": 0, "optim": "sgd"}

    with pytest.raises(NonFiniteError, match="step 2"):
        luthier.train(config | wild)

    def refuse(word):
        raise AssertionError(word)

    lines = (Path(config["output_dir"]) / "trainer_log.jsonl").read_text().splitlines()
    logged = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [line["current_steps"] for line in logged] == [1]


def test_a_pissa_adapter_is_also_saved_as_plain_lora_of_the_unchanged_model(config, llama_folder):
    result = luthier.train(config | {"pissa_init": True, "pissa_convert": True})

    base = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(base, result.output_dir / "pissa_converted").eval()
    ids = torch.arange(1, 20).unsqueeze(0)
    with torch.no_grad():
        # W + s(AB - A0B0) against (W - sA0B0) + sAB, both summed in float32
        torch.testing.assert_close(
            plain(ids).logits, result.model.eval()(ids).logits, rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(
    "knobs",
    [
        {"neftune_noise_alpha": 5.0},
        {"label_smoothing_factor": 0.1},
        {"optim": "adafactor"},
        {"optim": "sgd"},
        {"loraplus_lr_ratio": 16.0},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_stable_steps": 1},
        },
        {"train_sampling_strategy": "group_by_length"},
        {"disable_shuffling": True},
        {"dataloader_num_workers": 1},
        {"dataloader_drop_last": True},
        {"use_dora": True},
        {"finetuning_type": "full", "pure_bf16": True},
    ],
    ids=lambda knobs: "-".join(knobs),
)
def test_a_knob_changes_the_curve_or_leaves_it_but_the_run_ends(config, knobs):
    plain, turned = (
        losses(luthier.train(config)),
        losses(luthier.train(config | knobs | {"output_dir": config["output_dir"] + "-turned"})),
    )

    unchanging = {"dataloader_num_workers", "dataloader_drop_last"}
    assert len(turned) == 6
    assert (turned == plain) == (knobs.keys() <= unchanging)


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_rows_of_half_the_weight_have_half_the_loss(config, rows, tmp_path, layout):
    first = {}
    for weight in (1, 0.5):
        weighted = [row | {"weight": weight} for row in json.loads(rows.read_text())]
        file = tmp_path / f"{weight}.json"
        file.write_text(json.dumps(weighted))
        config |= {
            "dataset": "rows",
            "dataset_dir": {"rows": {"file_name": str(file), "columns": {"weight": "weight"}}},
            "output_dir": str(tmp_path / f"run-{weight}"),
            "layout": layout,
            "max_grad_norm": 0,
        }

        result = luthier.train(config)

        first[weight] = losses(result)
        folder = Path(result.output_dir)
        assert (folder / "adapter_model.safetensors").is_file()
    assert first[0.5][0] == pytest.approx(first[1][0] / 2, rel=1e-5)
    assert first[0.5][-1] < first[0.5][0]


class Told(TrainerCallback):
    """Keeps what a tracker reads, at each event."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, bool, bool, int]] = {}

    def keep(self, event: str, args) -> None:
        values = args.to_dict()
        names = ("gradient_accumulation_steps", "gradient_checkpointing", "save_total_limit")
        self.seen[event] = (*(values[name] for name in names), args.activation_checkpointing)

    def on_init_end(self, args, state, control, **others):
        self.seen["init"] = (args.gradient_accumulation_steps, args.save_total_limit)

    def on_train_begin(self, args, state, control, **others):
        self.keep("begin", args)

    def on_step_end(self, args, state, control, **others):
        self.keep(f"step {state.global_step}", args)

    def on_train_end(self, args, state, control, **others):
        self.keep("end", args)


@pytest.mark.parametrize("checkpointing", [True, "auto"])
def test_callbacks_are_told_what_the_user_has_set(config, checkpointing):
    told = Told()
    given = {
        "gradient_accumulation_steps": 5,
        "gradient_checkpointing": checkpointing,
        "save_total_limit": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "num_train_epochs": 2,
        "max_steps": -1,
    }

    result = luthier.train(config | given, callbacks=[told])

    on = checkpointing is True
    assert told.seen.pop("init") == (5, 2)
    assert told.seen == dict.fromkeys(
        ["begin", *(f"step {step}" for step in range(1, 9)), "end"], (5, on, 2, on)
    )
    epochs = [line["epoch"] for line in result.log_history if "loss" in line]
    assert epochs == [step / 4 for step in range(1, 9)]  # 40 rows, 10 to a step
    kept = {path.name for path in result.output_dir.glob("checkpoint-*")}
    assert kept == {"checkpoint-7", "checkpoint-8"}


def test_an_evaluation_without_rows_is_told_once_and_left_out(config, capsys):
    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_evaluate = True

    result = luthier.train(config, callbacks=[Evaluate()])

    assert capsys.readouterr().err.count("asks for an evaluation, and there are no rows") == 1
    assert len([line for line in result.log_history if "loss" in line]) == 6


def test_an_evaluation_on_start_asks_for_rows(config):
    with pytest.raises(ArgumentsError, match="eval_on_start needs rows to evaluate"):
        luthier.train(config | {"eval_on_start": True})

    held_out = luthier.train(config | {"eval_on_start": True, "val_size": 4})
    assert next(line["step"] for line in held_out.log_history if "eval_loss" in line) == 0


def test_dropping_what_fills_no_batch_may_not_drop_everything(config):
    config |= {"dataloader_drop_last": True, "per_device_train_batch_size": 64}

    with pytest.raises(DataError, match=r"64 examples, and there are 40: .* Lower per_device"):
        luthier.train(config)
