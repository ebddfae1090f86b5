"""Files of strangers: whatever they hold, none of their code is run, and the file is named"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.arguments.parse import parse_command_line
from luthier.checkpoints.manifest import read_manifest
from luthier.checkpoints.publish import seal
from luthier.errors import CheckpointError, LuthierError, ModelError, NoValidCheckpoint
from luthier.modeling.safe_loading import FORCE, WAIVE, reading_plain_data
from tests import tiny


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """The file that code of others would leave."""
    return tmp_path / "executed"


def plant(path: Path, marker: Path, *, is_archive: bool = True) -> None:
    """A file that `torch.load` takes for one of its own, or a bare pickle."""
    if is_archive:
        torch.save({"state": Malice(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Malice(marker)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with two checkpoints; its arguments."""
    folder = tmp_path_factory.mktemp("made")
    tiny.save(folder / "model", tiny.make_llama())
    rows = [{"instruction": f"Count to {n}.", "output": "1 2 3"} for n in range(6)]
    (folder / "rows.json").write_text(json.dumps(rows))
    arguments = {
        "model_name_or_path": str(folder / "model"),
        "dataset": str(folder / "rows.json"),
        "template": "chatml",
        "do_train": True,
        "lora_rank": 2,
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "max_steps": 4,
        "save_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    luthier.train(arguments)
    return folder, arguments


@pytest.fixture
def run(made, tmp_path):
    """That run when it had made its first checkpoint; its arguments."""
    folder, arguments = made
    shutil.copytree(folder / "run" / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    return arguments | {"output_dir": str(tmp_path / "run")}


def test_what_is_planted_here_would_run_elsewhere(tmp_path, marker):
    for is_archive in (True, False):
        plant(tmp_path / "x.pt", marker, is_archive=is_archive)
        with contextlib.suppress(RuntimeError):  # what it made is no state
            torch.load(tmp_path / "x.pt", weights_only=False)
        assert marker.exists()
        marker.unlink()


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_state_with_code_and_a_manifest_to_fit_is_refused(run, marker, name, is_archive):
    checkpoint = Path(run["output_dir"]) / "checkpoint-2"
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    plant(checkpoint / name, marker, is_archive=is_archive)
    seal(checkpoint, manifest)

    with pytest.raises(CheckpointError, match=name):
        luthier.train(run)

    assert not marker.exists()


def test_a_state_with_code_and_the_old_manifest_is_refused_before_it_is_opened(run, marker):
    plant(Path(run["output_dir"]) / "checkpoint-2" / "optimizer.pt", marker)

    with pytest.raises(NoValidCheckpoint, match=r"optimizer\.pt has"):
        luthier.train(run)

    assert not marker.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "value_head.bin", "pytorch_model.bin"])
def test_pickles_that_nobody_needs_are_not_opened(run, marker, name):
    checkpoint = Path(run["output_dir"]) / "checkpoint-2"
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    plant(checkpoint / name, marker)
    seal(checkpoint, manifest)

    assert luthier.train(run).metrics

    assert not marker.exists()


def test_a_model_of_pickled_weights_is_refused(made, run, tmp_path, marker):
    folder = Path(shutil.copytree(made[0] / "model", tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    plant(folder / "pytorch_model.bin", marker)

    with pytest.raises(LuthierError, match=r"pytorch_model\.bin"):
        luthier.train(run | {"model_name_or_path": str(folder)})

    assert not marker.exists()


def test_a_pickled_adapter_is_refused(made, run, tmp_path, marker):
    adapter = Path(shutil.copytree(made[0] / "run", tmp_path / "adapter"))
    (adapter / "adapter_model.safetensors").unlink()
    plant(adapter / "adapter_model.bin", marker)
    new = run | {"output_dir": str(tmp_path / "new"), "adapter_name_or_path": str(adapter)}

    with pytest.raises(LuthierError, match=r"adapter_model\.bin"):
        luthier.train(new)

    assert not marker.exists()


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pt", "rows.py", "rows.npy"])
def test_data_that_could_be_code_is_refused(run, tmp_path, marker, name):
    plant(tmp_path / name, marker, is_archive=False)

    with pytest.raises(LuthierError, match=name.replace(".", r"\.")):
        luthier.train(run | {"dataset": str(tmp_path / name), "output_dir": str(tmp_path / "new")})

    assert not marker.exists()


def test_the_parts_of_deepspeed_are_read_as_plain_data(tmp_path, marker):
    pytest.importorskip("deepspeed")
    from luthier.distributed.deepspeed import allow_parts

    allow_parts()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        plant(tmp_path / name, marker)
        with reading_plain_data(), pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / name, weights_only=False)

    assert not marker.exists()


def test_no_variable_of_the_environment_lets_code_in(tmp_path, marker, monkeypatch):
    monkeypatch.setenv(WAIVE, "1")
    monkeypatch.delenv(FORCE, raising=False)
    plant(tmp_path / "x.pt", marker)

    with reading_plain_data(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pt")

    assert not marker.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.system", "!x"])
def test_a_tag_in_a_configuration_makes_nothing(tmp_path, marker, tag):
    config = tmp_path / "run.yaml"
    config.write_text(f"model_name_or_path: {tag} ['{marker}']\n")

    with pytest.raises(LuthierError, match=r"run\.yaml:1: not YAML"):
        parse_command_line([str(config)])

    assert not marker.exists()


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('{marker}') }}",
    "{% for x in range(10**9) %}{% endfor %}",
    "{{ messages.append({'role': 'system', 'content': 'x'}) }}",
)


@pytest.mark.parametrize("text", TEMPLATES)
def test_a_chat_template_reaches_nothing_but_the_messages(made, run, tmp_path, marker, text):
    folder = Path(shutil.copytree(made[0] / "model", tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(text.replace("{marker}", str(marker)))
    new = run | {"output_dir": str(tmp_path / "new"), "model_name_or_path": str(folder)}
    del new["template"]

    with pytest.raises(LuthierError):
        luthier.train(new)

    assert not marker.exists()


def test_code_beside_a_model_is_not_run_by_its_configuration(made, run, tmp_path, marker):
    folder = Path(shutil.copytree(made[0] / "model", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
        "_attn_implementation_internal": "somebody/kernel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    new = run | {"output_dir": str(tmp_path / "new"), "model_name_or_path": str(folder)}

    with pytest.raises(ModelError, match="trust_remote_code"):
        luthier.train(new)

    assert not marker.exists()


def test_a_kernel_that_a_configuration_asks_for_is_not_fetched(made, run, tmp_path):
    folder = Path(shutil.copytree(made[0] / "model", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["_attn_implementation_internal"] = "somebody/kernel"
    (folder / "config.json").write_text(json.dumps(config))
    new = run | {"output_dir": str(tmp_path / "new"), "model_name_or_path": str(folder)}

    result = luthier.train(new | {"max_steps": 1})

    assert result.model.config._attn_implementation != "somebody/kernel"
