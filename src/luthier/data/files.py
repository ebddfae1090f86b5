"""a path -> the data files behind it, all of one kind and of one split."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from luthier.data.reader import READERS, file_name
from luthier.errors import DataError, suggest

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words of a file's or a folder's name -> the split that it belongs to, as the hub reads them."""

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_INFO = "dataset_info.json"
_NO_DATA = {"config.json", _INFO, "dataset_infos.json", _SAVED_SPLITS}
_SHARD = re.compile(r"(.+?)[-.]\d{5}-of-\d{5}")
_POINTER = b"version https://git-lfs"


class Found(NamedTuple):
    """The files of a data set."""

    files: tuple[Path, ...]  # in the order in which they are read
    told: str = ""  # which others were left out, as a line; empty when there are none


def find_files(
    name: str,
    location: str | Path,
    *,
    folder: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    home: Path | None = None,
) -> Found:
    """The file, or the data files of a folder in the order of their names.

    A folder holds data files, or what `save_to_disk` wrote, or it is a data set of the hub whose
    README says which files are which subset and split. Of files that are named by split, those of
    one are read. Hidden files and files of no data kind (a README) are passed over.

    Args:
        name: the data set, for messages.
        location: a file or a folder.
        folder: one inside of it.
        subset: a configuration that the README names.
        split: whose files are read; None for those to train on, or the only ones.
        home: a folder that no file may lie outside of.

    Raises:
        DataError: if nothing is there, nothing in it is data, kinds are mixed, what is asked for is
            not there, or a file leads out.
    """
    path = Path(location)
    if not os.path.exists(path):  # pathlib raises where a name is too long
        raise DataError(
            f"data set {name!r}: there is no file or folder {path}. Relative names in "
            "dataset_info.json start at dataset_dir."
        )
    if path.is_file():
        asked = {"folder": folder, "subset": subset, "split": None if split == "train" else split}
        for key, value in asked.items():
            if value is not None:
                raise DataError(
                    f'data set {name!r}: "{key}" is {value!r}, and {path} is one file, which has '
                    f'no {key}s. Take "{key}" away, or name the folder that holds the files.'
                )
        if path.suffix.lower() not in READERS:
            raise DataError(
                f"data set {name!r}: {path} is none of the kinds {', '.join(READERS.names())}."
            )
        found = [str(path)], ""
    else:
        found = _find_in_folder(name, path, folder, subset, split)
    for file in map(Path, found[0]):
        if not file.is_file():
            raise DataError(f"data set {name!r}: {file} is not there. Is the folder whole?")
        if home is not None and not file.resolve().is_relative_to(home.resolve()):
            raise DataError(
                f"data set {name!r}: {file} leads to {file.resolve()}, which is not in {home}. Put "
                "the data (not a link to it) there, or set allow_outside: true if you trust it."
            )
        if file.stat().st_size < 1024 and file.read_bytes().startswith(_POINTER):
            raise DataError(
                f"data set {name!r}: {file} is a pointer of Git LFS, not the data. Fetch it with "
                "`git lfs pull` in that folder."
            )
    return Found(tuple(map(Path, found[0])), found[1])


def is_inside(path: str) -> bool:
    """Whether a relative path stays, by its words alone, in the folder that it starts in."""
    parts = PurePosixPath(path.replace("\\", "/"))
    leads_out = parts.is_absolute() or ".." in parts.parts or path.startswith("~")
    return not leads_out and not any(one in path for one in ("://", "::", "\0"))


def pick_data_files(
    name: str, folder: str, paths: Sequence[str], split: str | None = None
) -> tuple[list[str], str]:
    """Those of a folder's paths that hold data of a split, by name, and what `Found.told` says.

    Raises:
        DataError: if none holds data, kinds are mixed, or there is no such split.
    """
    return _pick(name, folder, {path: _split_of(file_name(path)) for path in paths}, split)


def _find_in_folder(
    name: str, path: Path, folder: str | None, subset: str | None, split: str | None
) -> tuple[list[str], str]:
    where = f"the folder {path}"
    if subset is not None and folder is not None:
        raise DataError(
            f"data set {name!r}: subset {subset!r} and folder {folder!r} both say what of {path} "
            "is read. Give one of them."
        )
    configs = [] if folder is not None else _read_configs(name, path)
    patterns: Any = None
    if configs or subset is not None:
        config = _choose_config(name, path, configs, subset)
        patterns, folder = config.get("data_files"), config.get("data_dir")
    if folder is not None:
        path = path / _inner(name, where, folder)
        where = f"the folder {path}"
        if not os.path.isdir(path):
            raise DataError(f"data set {name!r}: {where} is not there.")
    if patterns is not None:
        splits = _match(name, path, patterns)
    elif (path / _SAVED_SPLITS).is_file():
        saved = _read_list(name, path / _SAVED_SPLITS, "splits")
        splits = {
            file: one
            for one in saved
            for file in _saved_files(name, path / _inner(name, where, one))
        }
    elif (path / _SAVED).is_file() and (path / _INFO).is_file():
        splits = dict.fromkeys(_saved_files(name, path), "")
    else:
        files = [file for file in path.iterdir() if file.is_file()]
        if not any(map(_is_data, map(str, files))):
            files = [file for file in path.rglob("*") if file.is_file()]
        inner = {str(file): file.relative_to(path).as_posix() for file in files}
        splits = {
            file: _split_of(shown)
            for file, shown in inner.items()
            if not any(part.startswith((".", "__")) for part in PurePosixPath(shown).parts)
        }
        return _pick(name, where, splits, split)
    return _pick(name, where, splits, split, is_declared=True)


def _pick(
    name: str,
    where: str,
    splits: Mapping[str, str],
    split: str | None,
    *,
    is_declared: bool = False,
) -> tuple[list[str], str]:
    """The data files of a split, in order, of those with the split of each, empty for none.

    `is_declared` where something else than the files' names says order and splits.
    """
    files = [file for file in splits if _is_data(file)]
    if not files:
        raise DataError(
            f"data set {name!r}: {where} has no file of the kinds {', '.join(READERS.names())}."
        )
    files = files if is_declared else sorted(files)
    known = list(dict.fromkeys(splits[file] for file in files))
    chosen = _choose_splits(known, split, is_declared=is_declared)
    if not chosen:
        found = f"has no split {split!r}" if split else "has several splits"
        raise DataError(
            f"data set {name!r}: {where} {found}. There are: "
            f"{', '.join(repr(one) for one in known if one) or 'files of no split'}. Set "
            '"split" of the data set in dataset_info.json.'
        )
    picked = [file for file in files if splits[file] in chosen]
    kinds = Counter(Path(file_name(file)).suffix.lower() for file in picked)
    if len(kinds) > 1:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
        raise DataError(
            f"data set {name!r}: {where} mixes kinds of files ({listed}). Put each kind into a "
            "folder of its own."
        )
    left = Counter(splits[file] for file in files if splits[file] not in chosen)
    if not left:
        return picked, ""
    shown = " and ".join(repr(one) if one else "no split" for one in chosen)
    others = ", ".join(
        f"{count} of {one!r}" if one else f"{count} of none" for one, count in left.items()
    )
    return picked, f"files of {shown} are read ({len(picked)}), others are not ({others})"


def _choose_splits(known: Sequence[str], split: str | None, *, is_declared: bool) -> list[str]:
    """The names among those of files that make up a split; none where that is not clear.

    Files of no split are to train on.
    """
    meant = split or "train"
    if meant in known:
        named = [meant]
    else:
        named = [one for one in known if one and _word_of(one) == meant]
    others = []
    if meant == "train":
        others = [one for one in known if not one or not (is_declared or _word_of(one))]
    if len(named) <= 1 and named + others:
        return others + named
    return list(known) if split is None and len(known) == 1 else []


def _split_of(path: str) -> str:
    """The split that a path, relative to the data set, names; empty where it names none."""
    *folders, last = PurePosixPath(path).parts
    for part in folders:
        if word := _word_of(part):
            return word
    stem = Path(last).stem
    shard = _SHARD.match(stem)
    return shard[1] if shard else _word_of(stem) or ""


def _word_of(text: str) -> str | None:
    """The split that a word of the text stands for."""
    words = re.split(r"[-._ 0-9]+", text.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _is_data(path: str) -> bool:
    name = file_name(path)
    is_kind = Path(name).suffix.lower() in READERS
    return is_kind and not name.startswith(".") and name not in _NO_DATA


def _saved_files(name: str, folder: Path) -> list[str]:
    """The files of a set that `save_to_disk` wrote, in their order."""
    file = folder / _SAVED
    if any(_read_list(name, file, key) for key in ("_indices_files", "_indices_data_files")):
        raise DataError(
            f"data set {name!r}: {folder} holds rows and an order of them, as old versions of "
            "`datasets` saved it. Save it anew, or as parquet with `to_parquet`."
        )
    parts = _read_list(name, file, "_data_files")
    names = [one.get("filename") if isinstance(one, dict) else one for one in parts]
    return [str(folder / _inner(name, str(file), one)) for one in names]


def _read_list(name: str, file: Path, key: str) -> list[Any]:
    """A list of a JSON file; empty where it is absent or null."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data set {name!r}: {file} cannot be read: {error}.") from error
    found = (content.get(key) or []) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise DataError(f"data set {name!r}: {file} holds no list {key!r}. Is the folder whole?")
    return found


def _read_configs(name: str, path: Path) -> list[dict[str, Any]]:
    """What the head of a README says of subsets and splits."""
    from ruamel.yaml import YAML, YAMLError

    readme = path / "README.md"
    text = readme.read_text(encoding="utf-8-sig", errors="replace") if readme.is_file() else ""
    if not text.startswith("---"):
        return []
    try:
        head = YAML(typ="safe", pure=True).load(text[3:].partition("\n---")[0])
    except YAMLError as error:
        raise DataError(
            f"data set {name!r}: the head of {readme} is no YAML ({str(error).splitlines()[0]}). "
            'Mend it, or name the files, or their "folder".'
        ) from error
    configs = head.get("configs") if isinstance(head, dict) else None
    listed = configs if isinstance(configs, list) else []
    return [one for one in listed if isinstance(one, dict) and "config_name" in one]


def _choose_config(
    name: str, path: Path, configs: Sequence[dict[str, Any]], subset: str | None
) -> dict[str, Any]:
    names = [str(one["config_name"]) for one in configs]
    if subset is not None:
        if subset not in names:
            listed = suggest(subset, names) or " Its README names none."
            raise DataError(f"data set {name!r}: {path} has no subset {subset!r}.{listed}")
        return configs[names.index(subset)]
    usual = [one for one in configs if one.get("default") or one["config_name"] == "default"]
    if len(configs) > 1 and len(usual) != 1:
        raise DataError(
            f"data set {name!r}: {path} has the subsets {', '.join(map(repr, names))}. Set "
            '"subset" of the data set in dataset_info.json to one of them.'
        )
    return (usual or configs)[0]


def _match(name: str, path: Path, patterns: Any) -> dict[str, str]:
    """The files that `data_files` of a README names, each with its split."""
    from fsspec.implementations.local import LocalFileSystem

    listed = patterns if isinstance(patterns, list) else [patterns]
    splits: dict[str, str] = {}
    for one in listed:
        split, said = (
            (str(one.get("split")), one.get("path")) if isinstance(one, dict) else ("", one)
        )
        for pattern in said if isinstance(said, list) else [said]:
            inner = _inner(name, f"{path / 'README.md'}", pattern)
            found = LocalFileSystem().glob(f"{glob.escape(str(path.absolute()))}/{inner}")
            splits |= dict.fromkeys(sorted(filter(_is_data, found)), split)
    if not splits:
        raise DataError(
            f"data set {name!r}: nothing in {path} is what its README names as data_files. Is it "
            "whole?"
        )
    return splits


def _inner(name: str, where: str, path: Any) -> str:
    """A path that somebody's file names, if it stays in the data set."""
    if not isinstance(path, str) or not path or not is_inside(path):
        raise DataError(
            f"data set {name!r}: {where} names {path!r}; expected is a path inside the data set."
        )
    return path
