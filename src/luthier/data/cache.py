"""encoded data sets on disk, each in a folder named by the hash of all it was made from.

A folder holds shards (`00000.arrow`, ...), a journal with a line for each whole one, and, once all
are there, the manifest. Each of them appears by one renaming after it was flushed to the disk, so a
builder that is killed leaves whole shards, and the next one goes on behind them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from luthier import console
from luthier.errors import DataError

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

SKEW_S = 60.0
"""How much later than another a process of the same run may begin, by any clock."""

MANIFEST, JOURNAL = "manifest.json", "shards.jsonl"

CHECKED_BYTES = 4 << 30
"""Up to this size all bytes of a data set are checked at every start. Beyond it, those of shards
whose length or time of change is not the one that was written down."""

REMEMBERED_BYTES = 64 << 20
"""From this size on the hash of a file is remembered as long as its stamps stay the same."""


def cache_root(cache_dir: str | None) -> Path:
    """Where encoded data is kept: in `cache_dir`, else in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser() / "luthier-data"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "luthier" / "data"


def hash_of(ingredients: Mapping[str, Any]) -> str:
    """One hash of everything that decides about the encoded rows, the code included."""
    import tokenizers
    import transformers

    libraries = [tokenizers.__version__, transformers.__version__]
    whole = {**ingredients, "code": _hash_of_code(), "libraries": libraries}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def hash_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary, the special tokens and the settings that change ids."""
    if tokenizer.is_fast:
        vocabulary = tokenizer.backend_tokenizer.to_str()
    else:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        vocabulary += repr(sorted(tokenizer.init_kwargs.items(), key=lambda item: item[0]))
    parts = [
        type(tokenizer).__name__,
        vocabulary,
        repr([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]),
        repr(sorted(tokenizer.all_special_tokens)),
        repr(tokenizer.split_special_tokens),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@cache
def _hash_of_code() -> str:
    """A hash of the modules between a row and its ids, so that none of their changes is missed."""
    package = Path(__file__).parent.parent
    modules = [package / "records.py", package / "example.py"]
    for room in ("data", "stages", "templates"):
        modules += sorted((package / room).rglob("*.py"))
    digest = hashlib.sha256()
    for module in modules:
        digest.update(module.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """A file of encoded rows as it was written down."""

    number: int  # its place among the others
    size: int  # bytes
    checksum: int  # CRC-32 of them
    changed_ns: int  # when it was written
    counts: dict[str, Any] = field(default_factory=dict)  # what became of the rows it was made of

    @property
    def name(self) -> str:
        """The file's."""
        return f"{self.number:05d}.arrow"


@dataclass
class Store:
    """A folder of the cache while its shards are made."""

    folder: Path  # where
    shards: dict[int, Shard] = field(default_factory=dict)  # those that are whole, by number

    def add(self, shard: Shard) -> None:
        """Writes down a shard that was published."""
        flush(self.folder)
        self.shards[shard.number] = shard
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(vars(shard)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


@dataclass(frozen=True)
class Published:
    """An encoded data set that is whole."""

    folder: Path
    shards: list[Shard]  # its files, in order
    report: dict[str, Any]  # what became of its rows
    was_there: bool = False  # whether it was found, not made

    def open(self, key: str) -> datasets.Dataset:
        """The rows of all shards, on disk, under the hash of all that they were made from."""
        import datasets
        from datasets.table import MemoryMappedTable, concat_tables

        files = [str(self.folder / shard.name) for shard in self.shards]
        tables = [MemoryMappedTable.from_file(file) for file in files]
        return datasets.Dataset(concat_tables(tables), fingerprint=key[:32])


def write_shard(folder: Path, number: int, write: Callable[[Path], dict[str, Any]]) -> Shard:
    """Publishes a shard; `write` makes the file it is given, and returns the counts."""
    name = Shard(number, 0, 0, 0).name
    part = folder / f"{name}.{os.getpid()}.part"
    counts = write(part)
    flush(part)
    checksum = _checksum(part)
    os.replace(part, folder / name)
    stat = (folder / name).stat()
    return Shard(number, stat.st_size, checksum, stat.st_mtime_ns, counts)


def get_or_build(
    root: Path,
    key: str,
    build: Callable[[Store], Mapping[str, Any]],
    *,
    overwrite: bool = False,
) -> Published:
    """The data set of `key`, made by `build` when it is not there or not whole.

    One of several processes builds under a lock, the others wait and find it. Whole shards of a
    builder that was killed, and of a folder some of whose shards were damaged, are kept: `build`
    adds those that the store does not have, and returns the report. With `overwrite` what was there
    before this run is built again, by the first of several processes.

    Raises:
        DataError: if the cache cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = root / key
    made_since = 0
    if overwrite:  # launched processes do not begin at once, and a file server has its own clock
        began = (psutil.Process().create_time() - SKEW_S) * 1e9
        made_since = int(began) if "RANK" in os.environ else time.time_ns()
    if (found := find_published(folder, made_since)) is not None:
        return found
    lock = FileLock(root / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock.acquire(timeout=10)
                break
            except Timeout:
                done = len(_journal(folder))
                console.info(
                    "waiting for another process that encodes the same data "
                    f"({done:,} shards are done) ..."
                )
    except OSError as error:
        raise DataError(
            f"the cache folder {root} cannot be written: {error.strerror}. Set cache_dir to a "
            "folder that can, or XDG_CACHE_HOME."
        ) from error
    try:
        if (found := find_published(folder, made_since)) is not None:
            return found
        for path in folder.iterdir() if overwrite else ():
            path.unlink(missing_ok=True)
        store = _take_up(folder)
        report = dict(build(store))
        shards = [store.shards[number] for number in sorted(store.shards)]
        content = {"report": report, "shards": [vars(shard) for shard in shards]}
        _write_whole(folder / MANIFEST, json.dumps(content))  # from now on the folder is whole
        return Published(folder, shards, report)
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} cannot be written: {error.strerror or error}. What is "
            "whole is kept; set cache_dir to a folder with room, or clean it with "
            "`luthier data prepare --clean`."
        ) from error
    finally:
        lock.release()


def find_published(folder: Path, made_since_ns: int = 0) -> Published | None:
    """The data set, if its manifest is there, all shards are as it says, and they are new enough.

    Of the processes of a run none removes what another has found here.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        shards = [Shard(**one) for one in content["shards"]]
        report = dict(content["report"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if any(shard.changed_ns < made_since_ns for shard in shards):
        return None
    is_small = sum(shard.size for shard in shards) <= CHECKED_BYTES
    check_all = console.is_main_process() and is_small
    if not all(_is_whole(folder, shard, check_all=check_all) for shard in shards):
        return None
    os.utime(folder / MANIFEST)
    return Published(folder, shards, report, was_there=True)


def _is_whole(folder: Path, shard: Shard, *, check_all: bool) -> bool:
    try:
        stat = (folder / shard.name).stat()
    except OSError:
        return False
    is_known = stat.st_mtime_ns == shard.changed_ns and not check_all
    return stat.st_size == shard.size and (
        is_known or _checksum(folder / shard.name) == shard.checksum
    )


def _take_up(folder: Path) -> Store:
    """A store with the whole shards of an unfinished or damaged folder; the rest is removed."""
    known = _journal(folder)
    whole = {n: one for n, one in known.items() if _is_whole(folder, one, check_all=True)}
    was_published = (folder / MANIFEST).exists()
    keep = {one.name for one in whole.values()}
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)  # workers of a killed run may still rename theirs
    store = Store(folder)
    for one in whole.values():
        store.add(one)
    if was_published:
        console.warn(
            f"cached data is damaged: {len(known) - len(whole):,} of {len(known):,} shards are "
            f"encoded again: {folder}"
        )
    elif whole:
        console.info(f"{len(whole):,} shards were encoded before and are kept: {folder}")
    return store


def _journal(folder: Path) -> dict[int, Shard]:
    """The shards that were written down; a line that was cut off ends it."""
    shards: dict[int, Shard] = {}
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return shards
    for line in lines:
        try:
            shard = Shard(**json.loads(line))
        except (ValueError, TypeError):
            break
        shards[shard.number] = shard
    return shards


def _checksum(file: Path) -> int:
    total = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    flush(part)
    os.replace(part, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Has the system write a file or a folder out, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_of_file(file: Path, root: Path) -> str:
    """The sha256 of a file's bytes; of a large file it is remembered under `root`.

    What is remembered holds as long as size, inode and both times stay the same, if the file was
    not changed in the two seconds before it was read.
    """
    stat = file.stat()
    stamps = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]
    memory = root / "hashes" / f"{name}.json"
    if stat.st_size >= REMEMBERED_BYTES:
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            if known["stamps"] == stamps:
                return str(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
    is_settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2_000_000_000
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if stat.st_size >= REMEMBERED_BYTES and is_settled:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(memory, json.dumps({"stamps": stamps, "sha256": digest.hexdigest()}))
        except OSError as error:
            console.once(f"the hash of {file} is not remembered: {error}")
    return digest.hexdigest()


def stored(root: Path) -> Iterator[tuple[str, int]]:
    """The key and the bytes of each data set in the cache, finished or not."""
    for folder in sorted(root.glob("?" * 64)) if root.is_dir() else ():
        yield folder.name, sum(path.stat().st_size for path in folder.iterdir())


def clean(root: Path, keep: Collection[str] = ()) -> tuple[int, int]:
    """Removes what no process works on, but the keys to keep; says of how many, and their bytes.

    Without any to keep, copies of fetched files go, too.
    """
    from filelock import FileLock, Timeout

    num_removed, num_bytes = 0, 0
    for key, size in list(stored(root)):
        if key in keep:
            continue
        lock = FileLock(root / f"{key}.lock")
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(root / key)
                (root / f"{key}.lock").unlink(missing_ok=True)
        except Timeout:
            continue
        num_removed, num_bytes = num_removed + 1, num_bytes + size
    if not keep:
        for name in ("fetched", "hashes"):
            shutil.rmtree(root / name, ignore_errors=True)
    return num_removed, num_bytes
