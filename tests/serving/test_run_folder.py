from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import ModelError
from luthier.serving.run_folder import arguments_of


def make_run(folder: Path, started_in: Path, **arguments: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"arguments": arguments, "working_directory": str(started_in)}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def make_adapter(folder: Path, base: str = "somebody/base") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"base_model_name_or_path": base})
    (folder / "adapter_config.json").write_text(content, encoding="utf-8")
    return folder


def test_a_lora_run_is_its_base_with_its_adapter_and_template(tmp_path: Path) -> None:
    run = make_adapter(
        make_run(
            tmp_path / "run",
            tmp_path,
            model_name_or_path="owner/base",
            template="qwen",
            hf_hub_token="********",
        )
    )

    values = arguments_of(run)

    assert values == {
        "model_name_or_path": "owner/base",
        "template": "qwen",
        "adapter_name_or_path": [str(run)],
    }


def test_a_checkpoint_takes_the_record_of_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path, model_name_or_path="owner/base", template="qwen")
    checkpoint = make_adapter(run / "checkpoint-5")

    values = arguments_of(checkpoint)

    assert values["template"] == "qwen"
    assert values["adapter_name_or_path"] == [str(checkpoint)]


def test_a_full_run_is_the_model_in_its_folder(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", tmp_path, model_name_or_path="owner/base", finetuning_type="full"
    )
    (run / "config.json").write_text("{}", encoding="utf-8")

    assert arguments_of(run) == {"model_name_or_path": str(run), "finetuning_type": "full"}


@pytest.mark.parametrize(
    ("creates_new", "expected"), [(True, ["a", "b", "RUN"]), (False, ["a", "RUN"])]
)
def test_adapters_that_were_merged_stay_and_the_continued_one_is_replaced(
    tmp_path: Path, creates_new: bool, expected: list[str]
) -> None:
    run = make_adapter(
        make_run(
            tmp_path / "run",
            tmp_path,
            model_name_or_path="owner/base",
            adapter_name_or_path=["a", "b"],
            create_new_adapter=creates_new,
        )
    )

    found = arguments_of(run)

    names = [name.replace(str(run), "RUN") for name in found["adapter_name_or_path"]]
    assert names == expected
    assert "create_new_adapter" not in found


def test_weights_that_began_at_random_are_read_now(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path, model_name_or_path="plan", train_from_scratch=True)
    (run / "config.json").write_text("{}", encoding="utf-8")

    assert arguments_of(run) == {"model_name_or_path": str(run)}


def test_relative_paths_are_those_of_where_the_run_began(tmp_path: Path) -> None:
    (tmp_path / "there" / "base").mkdir(parents=True)
    run = make_adapter(make_run(tmp_path / "run", tmp_path / "there", model_name_or_path="base"))

    assert arguments_of(run)["model_name_or_path"] == str(tmp_path / "there" / "base")


def test_an_adapter_without_a_record_names_its_base_itself(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")

    assert arguments_of(adapter)["model_name_or_path"] == "somebody/base"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model to talk to"):
        arguments_of(tmp_path)


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        arguments_of(tmp_path / "rnu")
