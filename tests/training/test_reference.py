"""the model as it was when the run began: beside every method, live or read before, resumed"""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import TrainerCallback

import luthier
from luthier.errors import LuthierError, Stopped
from luthier.example import REFERENCE
from luthier.modeling.reads import read_logps
from luthier.modeling.reference import Reference
from luthier.stages.next_token import NextToken
from luthier.stages.stage import Loss
from luthier.training import precompute
from tests import tiny
from tests.launched import values_of_ranks
from tests.training import faults


def loss(stage: Any, model: Any, batch: Any) -> Loss:
    """Answers are to become likelier than they were."""
    logps_N = read_logps(model, batch).logps_N
    apart_N = logps_N - batch.token_numbers[REFERENCE]
    total = -torch.nn.functional.logsigmoid(apart_N).sum()
    moved = (apart_N.detach().abs().sum(), apart_N.numel())
    was = (batch.token_numbers[REFERENCE].sum(), apart_N.numel())
    return Loss(total, {"moved": moved, "was": was})


@contextmanager
def held_against_itself(**changes: Any):
    """Inside, stage sft has such a loss."""
    ours = {
        "loss": loss,
        "needs_reference": True,
        "draws_dropout": False,
        "train_metrics": ("moved", "was"),
        "eval_metrics": ("moved", "was"),
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in (ours | changes).items():
            monkeypatch.setattr(NextToken, name, value, raising=False)
        yield


def values(result: Any, *names: str) -> list[float]:
    return [record[name] for record in result.log_history for name in names if name in record]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def adapter(llama_folder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that has learned something."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    config = faults.config_of(llama_folder, rows, folder, save_strategy="no", learning_rate=0.05)
    luthier.train(config)
    return str(folder)


@pytest.fixture
def config(llama_folder: Path, rows: Path, tmp_path: Path) -> dict[str, Any]:
    return faults.config_of(
        llama_folder,
        rows,
        tmp_path / "run",
        val_size=8,
        eval_strategy="steps",
        eval_steps=4,
        learning_rate=0.02,
        cache_dir=str(tmp_path / "cache"),
    )


WAYS: dict[str, dict[str, Any]] = {
    "new": {},
    "given": {"adapter_name_or_path": "ADAPTER"},
    "merged": {"adapter_name_or_path": "ADAPTER", "create_new_adapter": True},
    "pissa": {"pissa_init": True},
    "dora": {"use_dora": True},
    "whole": {"additional_target": "embed_tokens,lm_head", "add_tokens": "<new>"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "full": {"finetuning_type": "full"},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_model_of_the_first_step_live_and_kept(
    way: str, config, adapter: str, tmp_path: Path, capsys
):
    config |= {n: adapter if v == "ADAPTER" else v for n, v in WAYS[way].items()}
    with held_against_itself():
        live = luthier.train(config | {"precompute_ref": False})
        capsys.readouterr()
        kept = luthier.train(config | {"output_dir": str(tmp_path / "kept")})

    assert "reference: 32 rows are read once, before training" in capsys.readouterr().err
    assert values(live, "loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert values(live, "moved")[0] < 1e-5
    assert min(values(live, "moved")[2:]) > 1e-2, "the reference stays behind"
    assert values(live, "eval_was")[0] == pytest.approx(values(live, "eval_was")[1], abs=1e-6)
    names = ("loss", "moved", "was", "eval_loss", "eval_moved", "eval_was")
    assert values(kept, *names) == pytest.approx(values(live, *names), abs=1e-5)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **others):
        control.should_training_stop |= state.global_step == 4


@pytest.mark.parametrize("way", ["given", "pissa", "whole", "full"])
def test_a_run_that_goes_on_is_held_against_the_first_model(way: str, config, adapter: str):
    config |= {n: adapter if v == "ADAPTER" else v for n, v in WAYS[way].items()}
    config |= {"precompute_ref": False}
    folder = Path(str(config["output_dir"]))
    with held_against_itself():
        whole = luthier.train(config | {"output_dir": str(folder.parent / "whole")})
        luthier.train(config, callbacks=[Stop()])
        resumed = luthier.train(config | {"resume_from_checkpoint": str(folder / "checkpoint-4")})

    names = ("loss", "moved", "was", "eval_was")
    assert values(resumed, *names) == values(whole, *names)


def test_what_was_read_is_found_again_by_another_loss_and_not_by_another_model(
    config, adapter: str, tmp_path: Path, capsys
):
    def train(name: str, **settings: Any) -> str:
        capsys.readouterr()
        luthier.train(config | {"output_dir": str(tmp_path / name)} | settings)
        return str(capsys.readouterr().err)

    with held_against_itself():
        first = train("first")
        again = train("again", learning_rate=1e-4, lora_rank=4, per_device_train_batch_size=4)
        other = train("other", adapter_name_or_path=adapter)

    assert first.count("are read once, before training") == 2
    assert "are read once" not in again
    assert again.count("it was read before") == 2
    assert other.count("are read once, before training") == 2


def test_a_reading_that_is_killed_goes_on_where_it_was(config, monkeypatch, capsys):
    monkeypatch.setattr(precompute, "TOKENS_OF_A_SHARD", 100)
    write, written = precompute.write_shard, []

    def killed(*given: Any) -> Any:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write(*given))
        return written[-1]

    with held_against_itself():
        with monkeypatch.context() as patch:
            patch.setattr(precompute, "write_shard", killed)
            with pytest.raises((KeyboardInterrupt, Stopped)):
                luthier.train(config)
        told = capsys.readouterr().err
        luthier.train(config)
    again = capsys.readouterr().err

    assert "reference: 32 rows are read once" in told
    assert "3 shards were" in again
    assert "reference: 32 rows are read once" not in again
    assert "rows are read once" in again


def test_a_short_run_on_many_rows_reads_what_it_needs(config, capsys):
    with held_against_itself():
        luthier.train(config | {"max_steps": 2, "eval_strategy": "no"})

    assert "read with every step" in capsys.readouterr().err


def test_another_model_may_be_the_reference(config, adapter: str, tmp_path: Path, capsys):
    with held_against_itself():
        other = luthier.train(
            config
            | {
                "ref_model": str(config["model_name_or_path"]),
                "ref_model_adapters": adapter,
                "precompute_ref": False,
            }
        )
        kept = luthier.train(
            config
            | {
                "output_dir": str(tmp_path / "kept"),
                "ref_model": str(config["model_name_or_path"]),
                "ref_model_adapters": adapter,
            }
        )
        own = luthier.train(
            config
            | {
                "output_dir": str(tmp_path / "own"),
                "adapter_name_or_path": adapter,
                "create_new_adapter": True,
            }
        )

    assert values(other, "moved")[0] > 0.1
    assert values(kept, "was", "eval_was") == pytest.approx(
        values(other, "was", "eval_was"), abs=1e-5
    )
    assert values(own, "was", "eval_was") == pytest.approx(
        values(other, "was", "eval_was"), abs=1e-5
    )


def test_a_reference_of_another_vocabulary_is_refused(config, tmp_path: Path):
    tokenizer = tiny.make_tokenizer(350)
    other = tiny.save(tmp_path / "other", tiny.make_llama(), tokenizer)

    with held_against_itself(), pytest.raises(LuthierError, match="another vocabulary"):
        luthier.train(config | {"ref_model": str(other)})


def test_dropout_is_off_and_told(config, capsys):
    with held_against_itself():
        result = luthier.train(config | {"lora_dropout": 0.3, "precompute_ref": False})

    assert values(result, "moved")[0] < 1e-5
    assert "dropout 0.3 was set" in capsys.readouterr().err


def on_this_rank(config: dict[str, Any], folder: str) -> list[list[float]]:
    dist.init_process_group("gloo")
    found = []
    for name, settings in (("kept", {}), ("live", {"precompute_ref": False})):
        with held_against_itself():
            result = luthier.train(config | settings | {"output_dir": f"{folder}/{name}"})
        dist.barrier()
        found.append(values(result, "loss", "moved", "was", "eval_loss", "eval_was"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_ranks_read_what_one_reads(method: str, config, tmp_path: Path):
    config |= {"finetuning_type": method, "save_strategy": "no"}
    two = config | {"gradient_accumulation_steps": 2, "cache_dir": str(tmp_path / "two")}
    kept, live = values_of_ranks(on_this_rank, 2, two, str(tmp_path / "ranks"))[0]
    with held_against_itself():
        one = luthier.train(config)

    expected = values(one, "loss", "moved", "was", "eval_loss", "eval_was")
    assert kept == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert live == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_tied_weights_are_swapped_together():
    model = tiny.make_llama(tie_word_embeddings=True)
    reference = Reference(model, is_new=False)
    reference.hold(model)
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.add_(1)

    with reference.reading(model) as first:
        assert first.lm_head.weight is first.get_input_embeddings().weight
        assert torch.equal(first.lm_head.weight, before)
    assert torch.equal(model.lm_head.weight, before + 1)
    assert model.lm_head.weight is model.get_input_embeddings().weight
