"""DeepSpeed on two ranks: what one rank learns, is written whole, and goes on after a save"""

import json
import shutil
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import luthier
from luthier.errors import ArgumentsError
from luthier.optional import is_installed
from tests.launched import free_port, run_command, values_of_ranks
from tests.tiny import make_qwen2, save

pytestmark = pytest.mark.skipif(
    not is_installed("deepspeed"), reason="the package deepspeed is not installed"
)

WORDS = "string bow neck maple glue spruce".split()


def uneven_rows(num_rows=37):
    """Odd in number, of 1 to 13 words, one of 60."""
    lengths = [60 if i == 11 else 1 + (7 * i) % 13 for i in range(num_rows)]
    return [
        {
            "instruction": f"Question {i}: " + WORDS[i % 6] * (1 + i % 4),
            "output": " ".join(WORDS[(i + j) % 6] for j in range(length)),
        }
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    save(folder / "model", make_qwen2())
    (folder / "rows.json").write_text(json.dumps(uneven_rows()))
    return folder


def settings(folder, name, **values):
    return {
        "model_name_or_path": str(folder / "model"),
        "template": "chatml",
        "dataset": str(folder / "rows.json"),
        "stage": "sft",
        "do_train": True,
        "cutoff_len": 256,
        "max_steps": 20,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "tokens_per_micro_batch": 128,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 1,
        "output_dir": str(folder / name),
    } | values


def stage(number, **values):
    return {"zero_optimization": {"stage": number, **values}}


def losses_and_norms(values):
    result = luthier.train(values)
    return [(each["loss"], each["grad_norm"]) for each in result.log_history if "loss" in each]


def weights_of(folder, name):
    return load_file(next((folder / name).glob("*.safetensors")))


def distance(left, right):
    """The norm of the difference over the norm."""
    assert left.keys() == right.keys()
    apart = sum(float((left[name] - right[name]).norm() ** 2) for name in left) ** 0.5
    return apart / sum(float(each.norm() ** 2) for each in left.values()) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_ranks_learn_what_one_learns(folder, kind):
    alone = settings(folder, f"{kind}-1", finetuning_type=kind, per_device_train_batch_size=2)
    (expected,) = values_of_ranks(losses_and_norms, 1, alone)

    for number in (2, 3):
        name = f"{kind}-z{number}"
        run = settings(folder, name, finetuning_type=kind, deepspeed=stage(number))
        steps, _ = values_of_ranks(losses_and_norms, 2, run)

        assert len(steps) == len(expected) == 20
        for (loss, norm), (loss_of_one, norm_of_one) in zip(steps, expected, strict=True):
            assert loss == pytest.approx(loss_of_one, rel=1e-5)
            assert norm == pytest.approx(norm_of_one, rel=1e-4)  # Adam carries rounding on
        assert distance(weights_of(folder, f"{kind}-1"), weights_of(folder, name)) < 1e-5


@pytest.mark.slow
def test_a_run_with_its_own_optimizer_and_scheduler_takes_the_arguments(folder):
    own = {
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": "auto",
                "betas": "auto",
                "eps": "auto",
                "weight_decay": "auto",
                "torch_adam": True,  # DeepSpeed's would be compiled first
            },
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": "auto",
                "warmup_max_lr": "auto",
                "warmup_num_steps": "auto",
                "total_num_steps": "auto",
                "warmup_type": "linear",
            },
        },
    }
    run = settings(folder, "own", deepspeed=stage(1) | own, max_steps=6, warmup_ratio=0.5)

    rates, _ = values_of_ranks(learning_rates, 2, run)

    assert max(rates) == pytest.approx(1e-2)
    assert rates.index(max(rates)) == 3  # warm-up is half of the steps
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)


def learning_rates(values):
    history = luthier.train(values).log_history
    return [each["learning_rate"] for each in history if "loss" in each]


@pytest.mark.slow
def test_weights_in_parts_grow_are_checkpointed_and_go_on(folder):
    run = settings(
        folder,
        "whole",
        deepspeed=stage(3),
        max_steps=4,
        add_tokens=",".join(f"<new{i}>" for i in range(9)),
        gradient_checkpointing=True,
        save_strategy="steps",
        save_steps=2,
        lr_scheduler_type="constant",
        val_size=5,
        eval_strategy="epoch",
    )
    whole, _ = values_of_ranks(losses_and_norms, 2, run)
    shutil.copytree(folder / "whole" / "checkpoint-2", folder / "resumed" / "checkpoint-2")

    rest, _ = values_of_ranks(losses_and_norms, 2, run | {"output_dir": str(folder / "resumed")})

    assert rest[-2:] == whole[-2:]
    assert distance(weights_of(folder, "whole"), weights_of(folder, "resumed")) == 0
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    base.resize_token_embeddings(448, mean_resizing=False)  # 409 and what makes it a multiple of 64
    assert PeftModel.from_pretrained(base, folder / "whole").active_adapter == "default"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("lora", 2), ("full", 3)])
def test_the_best_model_is_taken_up_at_the_end(folder, kind, number):
    run = settings(
        folder,
        f"best-{kind}",
        finetuning_type=kind,
        deepspeed=stage(number),
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        val_size=5,
        eval_strategy="steps",
        eval_steps=2,
        do_eval=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the first one is the best
    )
    first, _ = values_of_ranks(evaluations, 2, run)

    at_two, at_four, at_end = first
    assert at_two > at_four
    assert at_end == pytest.approx(at_two, rel=1e-6)
    if number == 3:  # the start after it finds nothing to train, and evaluates the same model
        again, _ = values_of_ranks(evaluations, 2, run)
        assert again == first  # trainer_state.json holds the others
    else:  # a longer run goes on, with what it is told and not with what was restored
        new = {"max_steps": 5, "learning_rate": 4e-3, "max_grad_norm": 0.5}
        allowed = {"lr_scheduler_type": "constant", "resume_allow_changes": True}
        (seen,), _ = values_of_ranks(settings_of_steps, 2, run | new | allowed)
        assert seen == (4e-3, 0.5)


def settings_of_steps(values):
    class Settings(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **others):
            seen.append((optimizer.param_groups[0]["lr"], optimizer.optimizer.clip_grad))

    seen = []
    luthier.train(values, callbacks=[Settings()])
    return seen


def evaluations(values):
    history = luthier.train(values).log_history
    return [each["eval_loss"] for each in history if "eval_loss" in each]


def test_a_run_without_a_launcher_is_told_of_one(folder):
    with pytest.raises(ArgumentsError, match="luthier train --nproc"):
        luthier.train(settings(folder, "alone", deepspeed=stage(2)))


@pytest.mark.slow
def test_the_launcher_of_deepspeed_starts_a_run(folder):
    (folder / "ds.json").write_text(json.dumps(stage(3)))
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    entry = str(Path(__file__).parents[2] / "src" / "train.py")
    words = [launcher, "--include=localhost:0,1", entry, "--do_train"]
    run = settings(folder, "launched", deepspeed=str(folder / "ds.json"), max_steps=2)
    del run["do_train"]
    for name, value in (run | {"plot_loss": True, "bf16": True}).items():
        words += [f"--{name}", str(value)]

    words.insert(1, f"--master_port={free_port()}")
    ended = run_command(words, environment={"LOCAL_SIZE": "2"})

    assert ended.exit_code == 0, ended.stderr[-3000:]
    left = {path.name for path in (folder / "launched").iterdir()}
    assert {"adapter_model.safetensors", "trainer_log.jsonl", "training_loss.png"} <= left
