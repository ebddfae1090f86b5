import multiprocessing
import os
import time
from pathlib import Path

import pytest

from luthier.data.cache import cache_root, get_or_build, hash_of, hash_of_tokenizer
from luthier.errors import DataError
from tests import tiny


def fill(folder: Path) -> None:
    (folder / "rows").write_text(str(os.getpid()))


def test_what_is_built_is_found_again(tmp_path):
    folder, was_there = get_or_build(tmp_path, "key", fill)
    again, is_there = get_or_build(tmp_path, "key", pytest.fail)

    assert (was_there, is_there) == (False, True)
    assert folder == again
    assert (folder / "rows").is_file()


def test_overwriting_builds_again(tmp_path):
    get_or_build(tmp_path, "key", fill)

    folder, was_there = get_or_build(
        tmp_path, "key", lambda stage: (stage / "rows").write_text("new") and None, overwrite=True
    )

    assert not was_there
    assert (folder / "rows").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["key"]


@pytest.mark.parametrize("name", ["rows", "sizes.json"])
@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 1), os.remove])
def test_a_damaged_folder_is_built_again(tmp_path, capsys, name, damage):
    folder, _ = get_or_build(tmp_path, "key", fill)
    content = (folder / "rows").read_text()
    damage(folder / name)

    again, was_there = get_or_build(tmp_path, "key", fill)

    assert (again, was_there) == (folder, False)
    assert (folder / "rows").read_text() == content
    assert "damaged" in capsys.readouterr().err
    assert get_or_build(tmp_path, "key", pytest.fail) == (folder, True)


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        fill(folder)
        raise DataError("no")

    with pytest.raises(DataError):
        get_or_build(tmp_path, "key", fail)

    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_a_killed_builder_left_is_not_taken_for_data(tmp_path):
    (tmp_path / "stage-key-dead").mkdir()

    folder, was_there = get_or_build(tmp_path, "key", fill)

    assert not was_there
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def _build_slowly(root: Path, results: "multiprocessing.Queue[tuple[bool, str]]") -> None:
    def build(folder: Path) -> None:
        time.sleep(0.2)
        fill(folder)

    folder, was_there = get_or_build(root, "key", build)
    results.put((was_there, (folder / "rows").read_text()))


def test_of_many_processes_one_builds(tmp_path):
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[bool, str]] = context.Queue()
    processes = [context.Process(target=_build_slowly, args=(tmp_path, results)) for _ in range(8)]

    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()

    assert sorted(was_there for was_there, _ in found) == [False] + [True] * 7
    assert len({content for _, content in found}) == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="Set cache_dir"):
        get_or_build(tmp_path / "file" / "cache", "key", fill)


def test_the_place_follows_the_arguments_then_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")

    assert cache_root(None) == Path("/somewhere/luthier/data")
    assert cache_root("/else") == Path("/else/luthier-data")


def test_the_hash_is_of_the_values_not_their_order():
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 2, "b": 1})


def test_every_change_of_a_tokenizer_changes_its_hash():
    plain, other, added, split = (tiny.make_tokenizer() for _ in range(4))
    added.add_tokens(["violin"])
    split.split_special_tokens = True
    other.eos_token = "<|endoftext|>"

    hashes = [hash_of_tokenizer(one) for one in (plain, added, split, other)]

    assert hashes[0] == hash_of_tokenizer(tiny.make_tokenizer())
    assert len(set(hashes)) == 4
