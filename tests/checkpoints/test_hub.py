"""what is uploaded: no state of the optimizer, no lock, no half model, no pickle of ours"""

from __future__ import annotations

from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy

from luthier.checkpoints.hub import Hub
from tests.checkpoints import made


@pytest.fixture
def uploads(monkeypatch) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    def upload(self: HfApi, **options: Any) -> Future[None]:
        seen.append(options)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def create(self: HfApi, name: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(repo_id=name)

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return seen


def trainer_of(folder: Path, strategy: HubStrategy = HubStrategy.EVERY_SAVE) -> Any:
    args = SimpleNamespace(
        output_dir=str(folder),
        hub_strategy=strategy,
        hub_token=None,
        hub_revision=None,
        hub_always_push=False,
        hub_model_id="me/mine",
        hub_private_repo=None,
        push_to_hub=True,
    )
    return SimpleNamespace(
        args=args,
        state=SimpleNamespace(global_step=3),
        control=None,
        callback_handler=SimpleNamespace(on_push_begin=lambda *heard: None),
        is_world_process_zero=lambda: True,
    )


def sent(upload: dict[str, Any]) -> set[str]:
    folder = Path(upload["folder_path"])
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    ignored = upload.get("ignore_patterns") or []
    return {name for name in names if not any(fnmatch(name, each) for each in ignored)}


def test_of_each_checkpoint_the_model_is_sent(tmp_path, uploads):
    hub = Hub(trainer_of(tmp_path))

    hub.push_checkpoint(made.checkpoint(tmp_path, 3))

    assert [sent(each) for each in uploads] == [{"adapter_model.safetensors", "MANIFEST.json"}]
    assert {each["repo_id"] for each in uploads} == {"me/mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_whole_checkpoints_are_sent_when_they_are_asked_for(tmp_path, uploads):
    checkpoint = made.checkpoint(tmp_path, 3)

    Hub(trainer_of(tmp_path, HubStrategy.CHECKPOINT)).push_checkpoint(checkpoint)
    Hub(trainer_of(tmp_path, HubStrategy.ALL_CHECKPOINTS)).push_checkpoint(checkpoint)
    Hub(trainer_of(tmp_path, HubStrategy.END)).push_checkpoint(checkpoint)

    places = [each.get("path_in_repo") for each in uploads]
    assert places == [None, "last-checkpoint", None, "checkpoint-3"]
    assert sent(uploads[1]) >= {"optimizer.pt", "MANIFEST.json"}


def test_at_the_end_the_folder_is_sent_without_what_stays_here(tmp_path, uploads):
    made.checkpoint(tmp_path, 3)
    for name in ("model.safetensors", "README.md", ".lock"):
        (tmp_path / name).write_text("")
    made.stage(tmp_path, 4)

    Hub(trainer_of(tmp_path)).push_model("Model save")

    assert sent(uploads[0]) == {"model.safetensors", "README.md"}
