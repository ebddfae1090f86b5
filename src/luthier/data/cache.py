"""encoded data sets on disk, each in a folder named by the hash of all it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STAGE = "stage-"
_SIZES = "sizes.json"


def cache_root(cache_dir: str | None) -> Path:
    """Where encoded data is kept: in `cache_dir`, else in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser() / "luthier-data"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "luthier" / "data"


def hash_of(ingredients: Mapping[str, Any]) -> str:
    """One hash of everything that decides about the encoded rows, the code included."""
    whole = {**ingredients, "code": _hash_of_code()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def hash_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary, the special tokens and the settings that change ids."""
    import tokenizers
    import transformers

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
        tokenizers.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@cache
def _hash_of_code() -> str:
    """A hash of the modules between a row and its ids, so that none of their changes is missed."""
    package = Path(__file__).parent.parent
    modules = [package / "records.py", *sorted((package / "data").rglob("*.py"))]
    digest = hashlib.sha256()
    for module in modules + sorted((package / "templates").rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def get_or_build(
    root: Path, key: str, build: Callable[[Path], None], *, overwrite: bool = False
) -> tuple[Path, bool]:
    """The folder of `key`, made by `build` when it is not there.

    It is made in a stage folder and published by renaming, under a lock: one of several processes
    builds, the others wait and find it. A builder that is killed leaves no folder of that name. A
    folder whose files are not as long as they were written is built again.

    Args:
        root: the cache.
        key: the hash of all that went into it.
        build: fills the folder it is given.
        overwrite: whether to build again; only rank 0 does, the result is the same anyway.

    Returns:
        The folder, and whether it was there.

    Raises:
        DataError: if the cache cannot be written.
    """
    from filelock import FileLock, Timeout

    folder, lock = root / key, FileLock(root / f"{key}.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock.acquire(timeout=10)
                break
            except Timeout:
                console.info("waiting for another process that encodes the same data ...")
    except OSError as error:
        raise DataError(
            f"the cache folder {root} cannot be written: {error.strerror}. Set cache_dir to a "
            "folder that can, or XDG_CACHE_HOME."
        ) from error
    try:
        for left in root.glob(f"{_STAGE}{key}-*"):
            shutil.rmtree(left, ignore_errors=True)
        if folder.exists() and not (overwrite and console.is_main_process()):
            if _is_whole(folder):
                return folder, True
            console.warn(f"cached data is damaged and encoded again: {folder}")
        stage = Path(tempfile.mkdtemp(prefix=f"{_STAGE}{key}-", dir=root))
        try:
            build(stage)
            (stage / _SIZES).write_text(json.dumps(_sizes(stage)), encoding="utf-8")
            _flush(stage)
            if folder.exists():
                folder.rename(stage.with_name(f"{stage.name}-old"))
            stage.rename(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            shutil.rmtree(stage.with_name(f"{stage.name}-old"), ignore_errors=True)
        return folder, False
    finally:
        lock.release()


def _is_whole(folder: Path) -> bool:
    """Whether the files are those that were published, none absent or cut short."""
    try:
        return bool(json.loads((folder / _SIZES).read_text(encoding="utf-8")) == _sizes(folder))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _SIZES}


def _flush(folder: Path) -> None:
    """Has the system write the files out, so that a published folder survives a power cut."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
