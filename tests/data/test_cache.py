import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.data import cache
from luthier.data.cache import (
    JOURNAL,
    MANIFEST,
    Store,
    cache_root,
    clean,
    get_or_build,
    hash_of,
    hash_of_file,
    hash_of_tokenizer,
    stored,
    write_shard,
)
from luthier.errors import DataError
from tests import tiny

KEY = "k" * 64


def make(store: Store, number: int, text: str = "rows") -> None:
    def write(path: Path) -> dict[str, Any]:
        path.write_text(f"{text} {number}")
        return {"num_read": number}

    store.add(write_shard(store.folder, number, write))


def build(store: Store) -> dict[str, Any]:
    made = [number for number in range(3) if number not in store.shards]
    for number in made:
        make(store, number)
    return {"made": made}


def must_not_build(store: Store) -> dict[str, Any]:
    raise AssertionError(f"it was there: {store.folder}")


def contents(found: cache.Published) -> list[str]:
    return [(found.folder / one.name).read_text() for one in found.shards]


WHOLE = ["rows 0", "rows 1", "rows 2"]


def test_what_is_built_is_found_again(tmp_path):
    made = get_or_build(tmp_path, KEY, build)
    again = get_or_build(tmp_path, KEY, must_not_build)

    assert (made.was_there, again.was_there) == (False, True)
    assert contents(made) == contents(again) == WHOLE
    assert made.report == again.report == {"made": [0, 1, 2]}
    assert [shard.counts for shard in again.shards] == [{"num_read": n} for n in range(3)]


def test_overwriting_builds_again(tmp_path):
    get_or_build(tmp_path, KEY, build)

    def renew(store: Store) -> dict[str, Any]:
        assert not store.shards
        make(store, 0, "new")
        return {}

    found = get_or_build(tmp_path, KEY, renew, overwrite=True)

    assert not found.was_there
    assert contents(found) == ["new 0"]
    assert {path.name for path in found.folder.iterdir()} == {"00000.arrow", MANIFEST, JOURNAL}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 1), os.remove, flip])
def test_only_the_damaged_shard_is_made_again(tmp_path, capsys, damage):
    folder = get_or_build(tmp_path, KEY, build).folder
    damage(folder / "00001.arrow")

    found = get_or_build(tmp_path, KEY, build)

    assert not found.was_there
    assert found.report == {"made": [1]}
    assert contents(found) == WHOLE
    assert "1 of 3 shards are encoded again" in capsys.readouterr().err
    assert get_or_build(tmp_path, KEY, must_not_build).was_there


def test_beyond_the_size_that_is_checked_a_changed_file_is_still_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHECKED_BYTES", 0)
    folder = get_or_build(tmp_path, KEY, build).folder
    assert get_or_build(tmp_path, KEY, must_not_build).was_there
    flip(folder / "00002.arrow")

    assert get_or_build(tmp_path, KEY, build).report == {"made": [2]}


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 5), os.remove])
@pytest.mark.parametrize("name", [MANIFEST, JOURNAL])
def test_a_lost_list_of_shards_costs_no_shard_while_the_other_is_there(tmp_path, name, damage):
    folder = get_or_build(tmp_path, KEY, build).folder
    damage(folder / name)

    found = get_or_build(tmp_path, KEY, build)

    assert contents(found) == WHOLE
    assert found.was_there or found.report == {"made": []}


def test_a_failed_build_keeps_its_whole_shards(tmp_path):
    def fail(store: Store) -> dict[str, Any]:
        make(store, 0)
        (store.folder / "00001.arrow.1.part").write_text("ro")
        raise DataError("no")

    with pytest.raises(DataError):
        get_or_build(tmp_path, KEY, fail)
    found = get_or_build(tmp_path, KEY, build)

    assert found.report == {"made": [1, 2]}
    assert contents(found) == WHOLE
    assert not list(found.folder.glob("*.part"))


def test_a_journal_that_was_cut_off_counts_up_to_there(tmp_path):
    folder = get_or_build(tmp_path, KEY, build).folder
    (folder / MANIFEST).unlink()
    lines = (folder / JOURNAL).read_text().splitlines()
    (folder / JOURNAL).write_text("\n".join([*lines[:2], lines[2][:20]]))

    assert get_or_build(tmp_path, KEY, build).report == {"made": [2]}


def _be_killed(root: Path) -> None:
    def build_one(store: Store) -> dict[str, Any]:
        make(store, 0)
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    get_or_build(root, KEY, build_one)


def test_the_lock_of_a_killed_builder_is_taken_over(tmp_path):
    killed = multiprocessing.get_context("fork").Process(target=_be_killed, args=(tmp_path,))
    killed.start()
    killed.join()

    found = get_or_build(tmp_path, KEY, build)

    assert killed.exitcode == -signal.SIGKILL
    assert found.report == {"made": [1, 2]}


def _build_slowly(root: Path, results: Any) -> None:
    def build_and_wait(store: Store) -> dict[str, Any]:
        time.sleep(0.2)
        return build(store) | {"by": os.getpid()}

    found = get_or_build(root, KEY, build_and_wait)
    results.put((found.was_there, found.report["by"], contents(found)))


def test_of_many_processes_one_builds(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_build_slowly, args=(tmp_path, results)) for _ in range(8)]

    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()

    assert sorted(was_there for was_there, _, _ in found) == [False] + [True] * 7
    assert len({by for _, by, _ in found}) == 1
    assert all(texts == WHOLE for _, _, texts in found)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"[sS]et cache_dir"):
        get_or_build(tmp_path / "file" / "cache", KEY, build)


def test_cleaning_keeps_what_is_asked_and_what_is_worked_on(tmp_path):
    from filelock import FileLock

    keys = ["a" * 64, "b" * 64, "c" * 64]
    for key in keys:
        get_or_build(tmp_path, key, build)
    sizes = dict(stored(tmp_path))

    with FileLock(tmp_path / f"{keys[1]}.lock"):
        removed = clean(tmp_path, keep={keys[0]})

    assert [*sizes] == keys
    assert removed == (1, sizes[keys[2]])
    assert [key for key, _ in stored(tmp_path)] == keys[:2]
    assert clean(tmp_path)[0] == 2


def test_the_hash_of_a_large_file_is_remembered_until_its_stamps_change(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "REMEMBERED_BYTES", 1)
    file = tmp_path / "rows"
    file.write_text("rows")
    os.utime(file, ns=(0, 0))
    before = hash_of_file(file, tmp_path)
    assert not (tmp_path / "hashes").exists()  # it was changed a moment ago: it could change again
    monkeypatch.setattr(cache.time, "time_ns", lambda: 1 << 62)
    assert hash_of_file(file, tmp_path) == before

    (memory,) = (tmp_path / "hashes").iterdir()
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps(known | {"sha256": "remembered"}))
    assert hash_of_file(file, tmp_path) == "remembered"
    file.write_text("sowr")

    assert hash_of_file(file, tmp_path) not in (before, "remembered")


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
