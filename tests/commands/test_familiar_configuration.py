"""a configuration as users bring it: every form of data, spaces in all paths"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from luthier import cli

CONFIG = """\
### model
model_name_or_path: {folder}/tiny llama
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: alpaca,plain_alpaca, sharegpt,tagged_sharegpt,openai
dataset_dir: {folder}/my data
template: chatml
cutoff_len: 2048
max_samples: 1000
packing: false
preprocessing_num_workers: 2
dataloader_num_workers: 1

### output
output_dir: {folder}/my runs/first
logging_steps: 1
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
# eval_dataset: alpaca
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""

ENTRIES = {
    "alpaca": {
        "file_name": "al paca.json",
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
            "history": "history",
        },
    },
    "plain_alpaca": {"file_name": "al paca.json"},
    "sharegpt": {
        "file_name": "sharegpt.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
    },
    "tagged_sharegpt": {
        "file_name": "openai.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
    "openai": {
        "file_name": "openai.jsonl",
        "formatting": "openai",
        "columns": {"messages": "messages"},
    },
}


def write_data(folder: Path) -> None:
    folder.mkdir()
    turns = [(f"Question {n}?", f"Answer {n}.") for n in range(20)]
    alpaca = [
        {
            "instruction": question,
            "input": "",
            "output": answer,
            "system": "Be brief.",
            "history": [["Hello.", "Good day."]],
        }
        for question, answer in turns
    ]
    sharegpt = [
        {
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": answer},
            ],
            "system": "Be brief.",
            "tools": "",
        }
        for question, answer in turns
    ]
    openai = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in turns
    ]
    (folder / "al paca.json").write_text(json.dumps(alpaca))
    (folder / "sharegpt.json").write_text(json.dumps(sharegpt))
    (folder / "openai.jsonl").write_text("\n".join(map(json.dumps, openai)))
    (folder / "dataset_info.json").write_text(json.dumps(ENTRIES))


def test_a_familiar_configuration_trains_unchanged(tmp_path: Path, llama_folder: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "tiny llama")
    write_data(tmp_path / "my data")
    config = tmp_path / "my first run.yaml"
    config.write_text(CONFIG.format(folder=tmp_path))

    code = cli.main(["train", str(config), "max_steps=2", f"cache_dir={tmp_path}/my cache"])

    run = tmp_path / "my runs" / "first"
    assert code == 0
    for name in ("adapter_model.safetensors", "training_loss.png", "trainer_log.jsonl", "run.json"):
        assert (run / name).is_file(), name
    sets = json.loads((run / "run.json").read_text())["data"]["sets"]
    assert [each["num_kept"] for each in sets] == [20] * 5
    learned = [each["num_learned"] for each in sets]
    assert learned[2] == learned[3] == learned[4] == learned[1] < learned[0]
