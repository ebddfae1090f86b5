"""memory that runs out: the step is computed in smaller pieces, with the same result"""

from __future__ import annotations

import json
import re

import pytest
import torch

import luthier
from luthier.batching.steps import StepBuilder
from luthier.errors import OutOfMemory
from luthier.example import ExampleSet
from luthier.modeling.device import is_out_of_memory
from luthier.training.oom import OomHandler
from tests.batching.test_steps import make_dataset
from tests.training import faults


@pytest.fixture
def config(llama_folder, tmp_path):
    return faults.config_of(llama_folder, faults.write_rows(tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("problem", "is_one"),
    [
        (torch.OutOfMemoryError(faults.TOO_MUCH), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_are_told_apart(problem, is_one):
    assert is_out_of_memory(problem) is is_one


def test_a_step_is_retried_in_halves_with_the_same_losses_and_the_limit_outlives_the_run(
    config, tmp_path, capsys
):
    whole = luthier.train(config | {"lora_dropout": 0.0})
    for step in (1, 7):
        folder = tmp_path / f"from-{step}"
        short = config | {"output_dir": str(folder)}

        result = faults.train(short, faults.out_of_memory_at(step, above=40))

        assert faults.losses(result) == pytest.approx(faults.losses(whole), abs=1e-5)
        assert re.search(
            r"memory has run out in a micro-batch of \d+ tokens", capsys.readouterr().err
        )
        state = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())
        (limit,) = state["stateful_callbacks"]["LuthierTrainer"]["attributes"]["token_limits"]
        assert 20 <= limit <= 40

    def refuse(loss, batch, now):
        assert now < 8 or batch.num_computed <= limit or batch.ends.numel() == 1
        return loss

    again = config | {
        "output_dir": str(tmp_path / "resumed"),
        "resume_from_checkpoint": str(folder / "checkpoint-7"),
    }
    resumed = faults.train(again, refuse)
    assert f"micro-batches have {limit} tokens at most" in capsys.readouterr().err
    assert faults.losses(resumed) == faults.losses(result)


def test_at_one_example_the_run_ends_with_three_remedies_and_their_savings(config):
    with pytest.raises(OutOfMemory) as raised:
        faults.train(config, faults.out_of_memory_at(2, above=10))

    told = str(raised.value)
    assert raised.value.exit_code == 2
    assert "which is one example and cannot be cut" in told
    remedies = re.findall(r"^  \d\. (\w+): .*?about ([\d.,]+) MiB$", told, re.MULTILINE)
    assert len(remedies) == 3
    assert {name for name, _ in remedies} <= {
        "gradient_checkpointing",
        "cutoff_len",
        "optim",
        "lora_rank",
    }
    assert all(float(saved) > 0 for _, saved in remedies)


def test_memory_that_runs_out_between_micro_batches_is_told_with_remedies(config, monkeypatch):
    def fail(self, *args, **options):
        raise torch.OutOfMemoryError(faults.TOO_MUCH)

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)

    with pytest.raises(OutOfMemory, match="between micro-batches"):
        luthier.train(config)


def test_evaluation_shrinks_only_itself(config, capsys):
    config |= {"val_size": 16, "do_eval": True, "do_train": True, "per_device_eval_batch_size": 8}
    whole = luthier.train(config)

    def fail_in_evaluation(loss, batch, now):
        if not torch.is_grad_enabled() and batch.num_computed > 40:
            raise torch.OutOfMemoryError(faults.TOO_MUCH)
        return loss

    config |= {"output_dir": config["output_dir"] + "-short"}
    short = faults.train(config, fail_in_evaluation)

    assert "memory has run out" in capsys.readouterr().err
    assert short.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], abs=1e-5)
    assert faults.losses(short) == faults.losses(whole)
    assert (
        short.metrics["train_micro_batches_per_step"]
        == (whole.metrics["train_micro_batches_per_step"])
    )


def make_keeper(**options):
    settings = {"can_retry": True, "exchanges": False, "pad_token_id": 0}
    return OomHandler(**settings | options, suggest=lambda tokens, longest: "remedies")


def fail_in(keeper):
    """A computation whose first micro-batch fails once."""
    state = {"failed": 0}

    def compute(step):
        for micro_batch in step.micro_batches:
            with keeper.computing(micro_batch):
                torch.rand(3)
                if not state["failed"]:
                    state["failed"] += 1
                    raise torch.OutOfMemoryError(faults.TOO_MUCH)
        return step, torch.rand(1).item()

    return compute


def test_the_second_attempt_draws_the_numbers_of_the_first():
    step = StepBuilder(ExampleSet(make_dataset(8)), 0, 1000, layout="tree")(range(8))
    keeper, cpu, model = make_keeper(), torch.device("cpu"), torch.nn.Linear(1, 1)
    torch.manual_seed(3)
    expected = [torch.rand(count) for count in (3, 3, 1)][-1].item()
    torch.manual_seed(3)

    pieces, drawn = keeper.train(model, step, cpu, fail_in(keeper))

    assert len(pieces.micro_batches) == 2
    assert keeper.latest is pieces
    assert drawn == expected


def test_what_ranks_do_together_is_not_repeated():
    step = StepBuilder(ExampleSet(make_dataset(8)), 0, 1000, layout="tree")(range(8))
    keeper = make_keeper(can_retry=False)

    with pytest.raises(OutOfMemory, match="ranks wait for each other"):
        keeper.train(torch.nn.Linear(1, 1), step, torch.device("cpu"), fail_in(keeper))


def test_gradients_are_exchanged_with_a_micro_batch_whose_size_was_computed_before():
    builder = StepBuilder(ExampleSet(make_dataset(16)), 0, 1000, layout="tree")
    keeper, cpu, sizes = make_keeper(exchanges=True), torch.device("cpu"), []

    def compute(step):
        for each in step.micro_batches:
            with keeper.computing(each):
                before = torch.get_rng_state()
                torch.rand(1)
            assert bool(each.num_tokens) != torch.equal(before, torch.get_rng_state())
        sizes.append([each.num_computed for each in step.micro_batches])

    for rows in (range(8), range(8), range(16)):
        keeper.train(torch.nn.Linear(1, 1), builder(rows), cpu, compute)

    assert sizes == [[44, 1], [44], [sum(2 + n % 9 for n in range(16)), 1]]
