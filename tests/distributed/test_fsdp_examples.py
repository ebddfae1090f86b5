"""accelerate's files for FSDP: each is read as it is meant, and one is launched"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from luthier.arguments.parse import parse_dict
from luthier.distributed.fsdp_config import SHARDED, Sharding, is_of_fsdp, read_sharding
from tests.launched import free_port, run_command

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "accelerate"

MEANT = {
    "fsdp2_config.yaml": Sharding(),
    "fsdp2_lora_config.yaml": Sharding(activation_checkpointing=True),
    "fsdp2_offload_config.yaml": Sharding(
        cpu_offload=True, state_dict_type=SHARDED, activation_checkpointing=True
    ),
    "fsdp2_multi_node_config.yaml": Sharding(
        state_dict_type=SHARDED, activation_checkpointing=True
    ),
}


def test_every_example_is_spoken_of_here():
    assert {path.name for path in EXAMPLES.iterdir()} == MEANT.keys()


@pytest.mark.parametrize("name", MEANT)
def test_accelerate_reads_each_example(name: str):
    config = load_config_from_file(str(EXAMPLES / name))

    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.use_cpu is False


@pytest.mark.parametrize("name", MEANT)
def test_what_accelerate_hands_on_is_what_the_example_means(name: str):
    words = ["--config_file", str(EXAMPLES / name), "src/train.py"]
    launched, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    variables = prepare_multi_gpu_env(launched)
    environment = {key: value for key, value in variables.items() if is_of_fsdp(key)}
    needed = {"model_name_or_path": "m", "output_dir": "o", "dataset": "d", "do_train": True}

    reading = read_sharding(parse_dict(needed), environment)

    assert reading.problems == reading.notes == []
    assert reading.sharding == MEANT[name]


@pytest.mark.parametrize("name", MEANT)
def test_an_example_can_be_named_in_a_configuration(name: str):
    needed = {"model_name_or_path": "m", "output_dir": "o", "dataset": "d", "do_train": True}
    asked = {"fsdp": True, "fsdp_config": str(EXAMPLES / name)}

    reading = read_sharding(parse_dict(needed | asked), {})

    assert reading.problems == []
    assert reading.sharding == MEANT[name]


@pytest.mark.slow
def test_accelerate_launches_an_example_on_two_cpu_processes(llama_folder: Path, tmp_path: Path):
    rows = [{"instruction": f"Count to {n}.", "output": "1 " * n} for n in range(1, 10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = tmp_path / "x.yaml"
    config.write_text(
        f"model_name_or_path: {llama_folder}\n"
        f"dataset: {tmp_path / 'rows.json'}\n"
        "template: chatml\ndo_train: true\nfinetuning_type: full\ncutoff_len: 64\n"
        "max_steps: 2\nper_device_train_batch_size: 1\nuse_cpu: true\n"
        "logging_steps: 1\nsave_strategy: 'no'\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launch += ["--main_process_port", str(free_port())]
    launch += ["--config_file", str(EXAMPLES / "fsdp2_config.yaml")]

    ended = run_command([*launch, ROOT / "src" / "train.py", config], folder=tmp_path)

    assert ended.exit_code == 0, ended.stderr[-3000:]
    assert "weights in parts" in ended.stdout + ended.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()
