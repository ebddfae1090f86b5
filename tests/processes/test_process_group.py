"""the group of a run's processes: who joins, who is refused, what they do once"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import luthier
from luthier.arguments.parse import parse_dict
from luthier.data.cache import Store, get_or_build, write_shard
from luthier.errors import ArgumentsError, LaunchError
from luthier.processes.environment import DistributedEnvironment
from luthier.processes.process_group import check_group, check_launch, join_group
from luthier.training.to_training_arguments import to_training_arguments
from tests.launched import Ended, run_ranks

RUN = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "dataset": "d"}

KEY = "0" * 64


def build_slowly(store: Store) -> dict[str, Any]:
    def write(path: Path) -> dict[str, Any]:
        time.sleep(0.5)
        path.write_text("rows")
        return {}

    store.add(write_shard(store.folder, 0, write))
    return {}


def live(config: dict[str, Any], cache: Path) -> dict[str, Any]:
    """What one of two processes sees: data made anew, a run, a run that cannot be."""
    from luthier import cli

    built = get_or_build(cache, KEY, build_slowly, overwrite=True)
    metrics = luthier.train(config).metrics
    stays = dist.is_initialized()
    wrong = {**config, "output_dir": f"{config['output_dir']}-wrong", "lora_target": "nonexist"}
    code = cli.main(["train", *(f"{name}={value}" for name, value in wrong.items())])
    return {
        "was_there": built.was_there,
        "metrics": metrics,
        "stays": stays and dist.is_initialized(),
        "code": code,
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.json"
    content = [
        {"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n + 1)))}
        for n in range(9)
    ]
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(scope="module")
def lives(
    tmp_path_factory: pytest.TempPathFactory, llama_folder: Path, rows: Path
) -> tuple[Path, list[Ended]]:
    folder = tmp_path_factory.mktemp("world")
    old = get_or_build(folder / "cache", KEY, build_slowly)
    content = json.loads((old.folder / "manifest.json").read_text())
    hour_ago = time.time_ns() - 3600 * 10**9
    content["shards"][0]["changed_ns"] = hour_ago
    (old.folder / "manifest.json").write_text(json.dumps(content))
    os.utime(old.folder / "00000.arrow", ns=(hour_ago, hour_ago))
    config = {
        "model_name_or_path": str(llama_folder),
        "dataset": str(rows),
        "eval_dataset": str(rows),
        "template": "chatml",
        "do_train": True,
        "do_predict": True,
        "predict_with_generate": True,
        "do_sample": False,
        "max_new_tokens": 4,
        "per_device_eval_batch_size": 2,
        "overwrite_cache": True,
        "cache_dir": str(folder / "encoded"),
        "finetuning_type": "lora",
        "cutoff_len": 64,
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "plot_loss": True,
        "report_to": "none",
    }
    return folder, run_ranks(live, 2, config, folder / "cache")


def values(lives: tuple[Path, list[Ended]]) -> list[dict[str, Any]]:
    for each in lives[1]:
        assert each.exit_code == 0, each.stderr
    return [each.value for each in lives[1]]


def test_data_that_is_made_anew_is_made_once(lives):
    assert sorted(each["was_there"] for each in values(lives)) == [False, True]


def test_the_files_of_a_run_are_written_once(lives):
    folder = lives[0] / "run"
    values(lives)

    steps = (folder / "trainer_log.jsonl").read_text().splitlines()
    assert [json.loads(line).get("current_steps") for line in steps][:2] == [1, 2]
    assert len(steps) == len(set(steps))
    found = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "run.json", "README.md", "training_loss.png"} <= found
    assert not [name for name in found if name.endswith((".part", ".tmp"))]


def test_the_first_process_alone_speaks(lives):
    values(lives)
    first, second = (each.stderr for each in lives[1])

    assert "2 processes, cpu each, joined by gloo" in first
    assert "step 2/2" in first
    assert "step 2/2" not in second
    assert "joined by" not in second


def test_answers_stand_in_the_order_of_their_rows(lives, rows):
    values(lives)
    labels = [row["output"] for row in json.loads(rows.read_text())]

    lines = (lives[0] / "run" / "generated_predictions.jsonl").read_text().splitlines()

    assert [json.loads(line)["label"].strip() for line in lines] == labels


def test_both_processes_have_the_same_numbers(lives):
    first, second = (each["metrics"] for each in values(lives))

    assert first["train_loss"] == second["train_loss"]
    assert first["predict_bleu-4"] == second["predict_bleu-4"]


def test_the_group_stays_for_the_next_run_of_the_same_process(lives):
    assert all(each["stays"] for each in values(lives))
    assert "destroy_process_group" not in "".join(each.stderr for each in lives[1])


def test_what_every_process_finds_wrong_is_said_once(lives):
    first, second = (each.stderr for each in lives[1])

    assert [each["code"] for each in values(lives)] == [2, 2]
    assert first.count("error: lora_target: this model has no module 'nonexist'") == 1
    assert "error:" not in second


# Who is refused


def launched(monkeypatch, **environment: str) -> None:
    said = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **environment}
    for name, value in said.items():
        monkeypatch.setenv(name, value)


def test_processes_that_do_not_see_each_other_are_refused(tmp_path):
    library = to_training_arguments(
        parse_dict({**RUN, "output_dir": str(tmp_path), "use_cpu": True})
    )

    check_group(DistributedEnvironment(), library)
    with pytest.raises(LaunchError, match="started 2 processes, but the group of this one has 1"):
        check_group(DistributedEnvironment(0, 2, 0, is_launched=True), library)


def test_several_processes_are_not_made_of_the_one_that_calls():
    with pytest.raises(ArgumentsError, match="nproc: 2 processes are asked for"):
        check_launch(parse_dict({**RUN, "nproc": 2}))


def test_a_backend_of_other_devices_is_refused_on_a_cpu(monkeypatch):
    launched(monkeypatch)

    check_launch(parse_dict({**RUN, "use_cpu": True, "ddp_backend": "gloo"}))
    with pytest.raises(ArgumentsError, match="ddp_backend: nccl needs devices"):
        check_launch(parse_dict({**RUN, "use_cpu": True, "ddp_backend": "nccl"}))


def test_a_process_without_a_device_of_its_own_is_refused(monkeypatch):
    launched(monkeypatch, WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
    monkeypatch.setattr("luthier.processes.environment.has_accelerator", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)

    with pytest.raises(ArgumentsError, match="1 accelerators are visible"):
        check_launch(parse_dict(RUN))


def test_a_precision_of_the_launcher_alone_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")

    check_launch(parse_dict({**RUN, "bf16": True}))
    with pytest.raises(ArgumentsError, match="launcher says bf16, and this run says neither"):
        check_launch(parse_dict(RUN))


def test_alone_no_group_is_made():
    assert join_group(parse_dict(RUN)) == DistributedEnvironment()
    assert not dist.is_initialized()


def test_the_launchers_word_for_the_cpu_becomes_the_arguments_own(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr("luthier.processes.environment.has_accelerator", lambda: True)

    library = to_training_arguments(parse_dict({**RUN, "output_dir": str(tmp_path)}))

    assert library.use_cpu
    assert "ACCELERATE_USE_CPU" not in os.environ


def test_a_process_that_sees_several_devices_uses_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("luthier.processes.environment.has_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    library = to_training_arguments(parse_dict({**RUN, "output_dir": str(tmp_path)}))

    assert library.n_gpu == 1
    assert "3 accelerators are here and this process uses one" in capsys.readouterr().err
