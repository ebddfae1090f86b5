"""dataset_info.json: what each data set is called, where it lies, how its rows are laid out."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from luthier.data.cloud import CLOUD, LOCAL, check_url, is_of_cloud, is_url, protocol_of
from luthier.data.files import Found, find_files, is_inside
from luthier.data.reader import READERS, SampleBy, file_name
from luthier.data.tokenized import is_written
from luthier.errors import DataError, suggest
from luthier.records import Conversation, Feedback, Origin, Pair, Record, Text
from luthier.registry import Registry
from luthier.secrecy import learn, masked

if TYPE_CHECKING:
    from luthier.arguments.data import DataArguments

FILE_NAME = "dataset_info.json"
Place: TypeAlias = Literal["file", "hub", "cloud"]


@dataclass(frozen=True)
class Columns:
    """Which column of a row holds what; None where nothing is read.

    `train` and `weight` say how much the row counts.
    """

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    margin: str | None = None
    train: str | None = None
    weight: str | None = None


@dataclass(frozen=True)
class Tags:
    """How messages name their parts and their speakers (sharegpt and openai)."""

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str | None = "system"


_GROUPS = (("prompt", "query"), ("response",), ("messages",))
"""Columns that are read by default, until one of their group is named."""

_NOT_READ = {
    "alpaca": {"messages"},
    "text": {one.name for one in fields(Columns)} - {"prompt"},
    "sharegpt": {"prompt", "query", "response", "history"},
    "openai": {"prompt", "query", "response", "history"},
}
"""Formatting -> the parts of `Columns` that its rows are not read from; others read all."""

OPENAI_COLUMNS = Columns(messages="messages")
OPENAI_TAGS = Tags("role", "content", "user", "assistant", "tool", "function_call", "system")


@dataclass(frozen=True)
class DatasetDescription:
    """One data set as a run reads it."""

    name: str  # how the user calls it
    place: Place  # whether `location` is a file or folder, a name on the hub, or a URL
    location: str  # the path, the hub's name, or the URL
    formatting: str | None = None  # a name of `FORMATS`; None when the rows are to tell
    ranking: bool = False  # whether rows hold a chosen and a rejected answer
    subset: str | None = None  # a configuration that the data set's README names
    split: str | None = None  # which split of it; None for the one to train on
    folder: str | None = None  # a folder inside the data set
    num_samples: int | None = None  # how many rows to draw, more than exist allowed; None for all
    columns: Columns = field(default_factory=Columns)  # which column holds what
    tags: Tags = field(default_factory=Tags)  # how messages are tagged
    sample_by: SampleBy = "line"  # what of a text file is a row
    home: Path | None = None  # a folder that no file may lie outside of

    def columns_read(self) -> dict[str, str]:
        """The column that each part is read from, of those that rows of this formatting have."""
        unread = _NOT_READ.get(self.formatting or "alpaca", set())
        named = {one.name: getattr(self.columns, one.name) for one in fields(Columns)}
        read = {part: name for part, name in named.items() if name and part not in unread}
        if self.ranking:
            read = {"chosen": "chosen", "rejected": "rejected"} | read
        if self.formatting == "openai" and self.columns.messages == "messages":
            read["other messages"] = "conversations"  # where rows have no column of that name
        return read

    def part_left_out(self, column: str) -> str | None:
        """The part that a column of this name usually holds, if that is read from no column."""
        part = {"instruction": "prompt", "input": "query", "output": "response"}.get(column, column)
        parts = ("prompt", "query", "response", "history", "system", "tools", "train", "weight")
        unread = _NOT_READ.get(self.formatting or "alpaca", set())
        is_open = part in parts and part not in unread
        return part if is_open and getattr(self.columns, part) is None else None

    def find_files(self) -> Found:
        """The files of a place that is one or a folder; a DataError as `files.find_files`."""
        return find_files(
            self.name,
            self.location,
            folder=self.folder,
            subset=self.subset,
            split=self.split,
            home=self.home,
        )


@dataclass(frozen=True)
class ToolTurns:
    """How a template writes the turns in which tools are called and answer."""

    separator: str = "\n"
    """What stands between the contents of tool messages that follow each other."""
    takes_text: bool = True  # whether text beside calls can be told from them


@dataclass(frozen=True)
class Reading:
    """How the rows of one data set are read."""

    description: DatasetDescription  # columns and tags
    needs_answer: bool = True
    """Whether a row without an answer is wrong (learning) or ends with an empty one (generation
    only)."""
    tool_turns: ToolTurns = ToolTurns()  # how calls and what tools answered are written
    remarks: Counter[str] = field(default_factory=Counter)
    """Counted by readers: what a row had that is not learned from."""


Format: TypeAlias = Callable[[Mapping[str, Any], Reading, Origin | None], Conversation]
"""Reads one row; raises RowError with field, reason and fix."""

FORMATS: Registry[Format] = Registry("formatting", "luthier.data.formats")


_SOURCES = {
    "hf_hub_url": "",
    "ms_hub_url": "data sets of ModelScope are not fetched: download it and give its `file_name`, "
    "or its `hf_hub_url`.",
    "om_hub_url": "data sets of Modelers are not fetched: download it and give its `file_name`, "
    "or its `hf_hub_url`.",
    "script_url": "loading scripts are programs of strangers and are not run: convert the data to "
    "json or parquet and give its `file_name`.",
    "cloud_file_name": "",
    "file_name": "",
}
"""Keys that say where a data set lies, first come first used, and why some are refused."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)

_READERS = frozenset(
    "arrow audiofolder cache conll csv eval fasta fastq genbank generator harbor hdf5 iceberg "
    "imagefolder json lance meshfolder mmcif niftifolder pandas parquet pdb pdffolder spark sql "
    "text tsfile videofolder vortex webdataset xml".split()
)
"""Names that `datasets` takes for its readers of files, not for data sets of the hub."""

_VALUES: dict[str, tuple[type, str]] = {
    **dict.fromkeys(_SOURCES, (str, "a text")),
    "file_sha1": (str, "a text"),
    "formatting": (str, "one of " + ", ".join(FORMATS.names())),
    "ranking": (bool, "true or false"),
    "subset": (str, "a text"),
    "split": (str, "a text"),
    "folder": (str, "a text"),
    "num_samples": (int, "a whole number above 0"),
    "columns": (dict, "an object"),
    "tags": (dict, "an object"),
}
"""Every key of a description: its type, and the type in words. `file_sha1` is of old files; the
content of a file is hashed for the cache anyway."""


@dataclass(frozen=True)
class Catalog:
    """The data sets that names stand for."""

    entries: Mapping[str, Any]  # name -> its object of dataset_info.json
    origin: str  # the file, as messages name it
    folder: Path  # what file names are relative to
    is_online: bool = False  # whether every name is one of the hub
    is_remote: bool = False
    """Whether the file itself comes from the hub and so may not name local files."""
    is_confined: bool = False  # whether its files must lie in `folder`
    absence: str = ""  # why there are no entries, when there is no file
    sample_by: SampleBy = "line"  # what of a text file is a row

    def describe(self, name: str) -> DatasetDescription:
        """What `name` stands for: an entry, else a path of a file or a folder.

        Raises:
            DataError: with every problem of the description, or the nearest known names.
        """
        found = self._find(name)
        learn("location", found.location)
        return replace(found, sample_by=self.sample_by)

    def _find(self, name: str) -> DatasetDescription:
        if self.is_online:
            try:
                return DatasetDescription(name, *self._locate("hf_hub_url", name))
            except DataError as error:
                raise DataError(f"data set {name!r} {error}") from error
        if name in self.entries:
            return self._read(name, self.entries[name])
        if is_url(name):
            return DatasetDescription(name, "cloud", name)
        for path in (Path(name).expanduser(), self.folder / name):
            if os.path.exists(path):  # pathlib raises where a name is too long
                return DatasetDescription(name, "file", str(path))
        if Path(name).suffix.lower() in READERS or name.startswith((".", "/", "~")):
            raise DataError(
                f"data set {name!r}: there is no such file or folder, neither here nor in "
                f"{self.folder}."
            )
        hub = " For a data set of the hub set `dataset_dir: ONLINE`." if "/" in name else ""
        reason = self.absence or f"it is not in {self.origin}"
        raise DataError(
            f"data set {name!r} is unknown: {reason}, and no file or folder is called so."
            f"{suggest(name, self.entries)}{hub}"
        )

    def _read(self, name: str, entry: Any) -> DatasetDescription:
        where = f"{self.origin}, under {name!r}"
        problems: list[str] = []
        if not isinstance(entry, dict):
            raise DataError(f"{where}: an object is expected, found {_kind(entry)}.")
        for key, value in entry.items():
            if key not in _VALUES:
                problems.append(f"{where}: key {key!r} is unknown.{suggest(key, _VALUES)}")
            elif value is not None and not _is_a(value, _VALUES[key][0]):
                problems.append(f'{where}: "{key}" is {_kind(value)}, expected {_VALUES[key][1]}.')
        given = {key: value for key, value in entry.items() if value is not None}
        formatting = given.get("formatting", "alpaca")
        if isinstance(formatting, str) and formatting not in FORMATS:
            hint = suggest(formatting, FORMATS.names())
            problems.append(f'{where}: "formatting" {formatting!r} is unknown.{hint}')
        if isinstance(given.get("num_samples"), int) and given["num_samples"] < 1:
            problems.append(f'{where}: "num_samples" is not above 0.')
        is_openai = formatting == "openai"
        columns = _overlay(
            OPENAI_COLUMNS if is_openai else Columns(), entry, "columns", where, problems
        )
        tags = _overlay(OPENAI_TAGS if is_openai else Tags(), entry, "tags", where, problems)
        source = next((key for key in _SOURCES if key in given), None)
        if source is None:
            near = difflib.get_close_matches("file_name", [str(key) for key in entry], n=1)
            hint = f" Is {near[0]!r} meant to be it?" if near else ""
            problems.append(
                f'{where}: it says nowhere where the data lies. Give "file_name", a path in '
                f'{self.folder}, "hf_hub_url", or "cloud_file_name".{hint}'
            )
        elif _SOURCES[source]:
            problems.append(f'{where}: "{source}": {_SOURCES[source]}')
        elif isinstance(given[source], str):
            try:
                place, location = self._locate(source, given[source])
                problems += [
                    f'{where}: "{key}" is of data sets of the hub and of folders here, not of '
                    "URLs. Name the folder that holds the files."
                    for key in ("subset", "folder")
                    if key in given and place == "cloud"
                ]
                if isinstance(given.get("folder"), str) and not is_inside(given["folder"]):
                    problems.append(
                        f'{where}: "folder" {given["folder"]!r} leads out; expected is one inside '
                        "the data set."
                    )
            except DataError as error:
                problems.append(f'{where}: "{source}" {given[source]!r} {error}')
        if problems or source is None:
            raise DataError("\n".join(problems))
        assert isinstance(columns, Columns)
        assert isinstance(tags, Tags)
        plain = ("ranking", "subset", "split", "folder", "num_samples")
        return DatasetDescription(
            name,
            place,
            location,
            formatting,
            columns=columns,
            tags=tags,
            home=self.folder if self.is_confined and place == "file" else None,
            **{key: given[key] for key in plain if key in given},
        )

    def _locate(self, source: str, value: str) -> tuple[Place, str]:
        """Where the value of one of `_SOURCES` leads; all that `datasets` reads as a path is one.

        What is wrong with the value is a DataError, as the end of a sentence.
        """
        if not value or "\0" in value:
            raise DataError("is no name of a file or a data set.")
        if source == "cloud_file_name" and not is_url(value):
            raise DataError("is no URL; expected is one such as s3://bucket/rows.jsonl.")
        if source == "hf_hub_url":
            if value in _READERS:
                raise DataError(
                    "is a reader of the library `datasets`, not a data set of the hub. Give the "
                    'file or the folder that it shall read as "file_name".'
                )
            if is_url(value):
                raise DataError("is a URL; expected is a name on the hub such as owner/name.")
            if _HUB_NAME.fullmatch(value) and not os.path.isdir(value):
                return "hub", value
            location = os.path.abspath(os.path.expanduser(value))
        elif is_url(value) and protocol_of(value) not in LOCAL:
            if (self.is_confined or self.is_remote) and not is_of_cloud(value):
                raise DataError(
                    f"may lead to files of this machine. Name a cloud ({', '.join(CLOUD)}), or "
                    "set allow_outside: true if you trust what the file says."
                )
            return "cloud", value
        else:
            location = os.path.join(self.folder, value.rpartition("://")[2])
        if self.is_remote:
            raise DataError("names a file of this machine; those named on the hub are not read.")
        found, home = Path(os.path.realpath(location)), self.folder.resolve()
        if self.is_confined and not found.is_relative_to(home):
            raise DataError(
                f"leads to {found}, which is not in {home}. Put the data (not a link to it) into "
                "that folder, name the file itself as the dataset, or set allow_outside: true if "
                "you trust what the file says."
            )
        return "file", location


def load_catalog(
    dataset_dir: str | Path | Mapping[str, Any], *, allow_outside: bool = False
) -> Catalog:
    """Reads the catalog that `dataset_dir` names.

    That is a folder with dataset_info.json (a folder without one has no names, paths still work),
    `ONLINE`, `REMOTE:NAME` of a hub data set that holds the file, or the file's content. With
    `allow_outside` the names of a file may stand for data that is not in its folder.

    Raises:
        DataError: if the file cannot be read, or is not an object of objects.
    """
    if isinstance(dataset_dir, Mapping):
        return Catalog(dataset_dir, "dataset_dir", Path("."))
    if str(dataset_dir) == "ONLINE":
        return Catalog({}, "the hub", Path("."), is_online=True)
    if str(dataset_dir).startswith("REMOTE:"):
        path = _fetch_catalog(str(dataset_dir).removeprefix("REMOTE:"))
        entries = _parse(path.read_bytes(), str(dataset_dir))
        return Catalog(entries, str(dataset_dir), Path("."), is_remote=True)
    folder = Path(dataset_dir).expanduser()
    path = folder / FILE_NAME
    if not path.is_file():
        there = "has no" if folder.is_dir() else "is no folder with a"
        return Catalog(
            {}, str(path), folder, absence=f"dataset_dir {str(folder)!r} {there} {FILE_NAME}"
        )
    entries = _parse(path.read_bytes(), str(path))
    return Catalog(entries, str(path), folder, is_confined=not allow_outside)


def metric_names(names: Sequence[str]) -> list[str]:
    """What metrics call each set: a path goes by its last part where that is enough."""
    short = [
        Path(file_name(name)).stem if is_url(name) or os.path.exists(name) else name
        for name in names
    ]
    return short if len({*short}) == len(names) else [masked(name) for name in names]


def check_datasets(
    data_args: DataArguments,
    record: type[Record] = Conversation,
    predicted: Collection[type[Record]] = (),
) -> list[str]:
    """What can be known to be wrong with the data before anything slow is imported.

    One text a problem: names nobody knows, wrong descriptions, absent files, other records.
    """
    if is_written(data_args.tokenized_path):
        return []  # the data need not be on this machine any more
    try:
        if str(data_args.dataset_dir).startswith("REMOTE:") and not is_offline():
            return []  # the hub is asked once, when the data is loaded
        catalog = load_catalog(data_args.dataset_dir, allow_outside=data_args.allow_outside)
    except DataError as error:
        names = (*data_args.dataset, *data_args.eval_dataset)
        return [str(error)] if names else []
    problems = []
    for name in dict.fromkeys((*data_args.dataset, *data_args.eval_dataset)):
        try:
            description = catalog.describe(name)
            is_evaluated = name in data_args.eval_dataset and name not in data_args.dataset
            check_readable(description, record, predicted if is_evaluated else ())
            if description.place == "file":
                description.find_files()
            elif description.place == "cloud":
                check_url(name, description.location)
        except DataError as error:
            problems.append(str(error))
    return problems


def check_readable(
    description: DatasetDescription, record: type[Record], predicted: Collection[type[Record]] = ()
) -> None:
    """Refuses a description of other records than the one that a stage reads, by its name."""
    columns = description.columns
    holds: type[Record] | None = None
    if description.ranking:
        holds = Pair
    elif columns.kto_tag is not None:
        holds = Feedback
    elif description.formatting is not None:
        holds = Conversation
    if holds is None or holds in predicted:
        return
    advice = _ADVICE.get(record, {}).get(holds)
    if advice is not None:
        raise DataError(f"data set {description.name!r}: {advice.format(tag=columns.kto_tag)}")


_RANKING = '"ranking" is true, its rows hold a chosen and a rejected answer; '
_TAGGED = '"columns" names kto_tag, its rows hold wanted and unwanted answers; '
_ALONE = (
    'its rows hold one answer that is not judged ("ranking" is not true, "columns" names no '
    "kto_tag); "
)
_OF_ONE: dict[type[Record], str] = {
    Pair: _RANKING + "stages sft and pt learn from one. Use stage: dpo or rm, or a data set of "
    "conversations.",
    Feedback: _TAGGED + "stages sft and pt would learn both. Use stage: kto, or leave out the rows "
    'whose {tag!r} is false, and take "kto_tag" out of "columns".',
}
_ADVICE: dict[type[Record], dict[type[Record], str]] = {
    Conversation: _OF_ONE,
    Text: _OF_ONE,
    Pair: {
        Feedback: _TAGGED + "stages dpo and rm compare two answers to a prompt. Use stage: kto.",
        Conversation: _ALONE + "stages dpo and rm compare two answers to a prompt. Set "
        '"ranking": true and name the columns "chosen" and "rejected", or use stage: sft.',
    },
    Feedback: {
        Conversation: _ALONE + "stage kto learns from marks. Name the column that holds true or "
        'false as "kto_tag" in "columns", or use stage: sft.',
    },
}
"""What a stage reads -> what a data set holds in its place -> what is said."""


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def _fetch_catalog(repository: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, FILE_NAME, repo_type="dataset"))
    except (OSError, ValueError) as error:  # the library's errors are of these two families
        if is_offline():
            raise DataError(
                f"dataset_dir 'REMOTE:{repository}': HF_HUB_OFFLINE is set and its {FILE_NAME} is "
                "not in the local cache. Unset it, or use a local folder."
            ) from error
        raise DataError(
            f"dataset_dir 'REMOTE:{repository}': its {FILE_NAME} cannot be fetched from the hub "
            f"({type(error).__name__}). Check the name and the network, or use a local folder."
        ) from error


def _parse(content: bytes, origin: str) -> dict[str, Any]:
    def object_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{origin}: {name!r} stands there twice in one object.")
        return dict(pairs)

    try:
        entries = json.loads(content.decode("utf-8-sig"), object_pairs_hook=object_of)
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: byte {error.start} is not UTF-8. Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{origin}:{error.lineno}, column {error.colno}: not JSON: {error.msg}."
        ) from error
    except RecursionError as error:
        raise DataError(f"{origin}: it is nested too deeply to be read.") from error
    if not isinstance(entries, dict):
        raise DataError(f"{origin}: an object of data sets is expected, found {_kind(entries)}.")
    return entries


def _overlay(
    defaults: Columns | Tags, entry: dict[str, Any], key: str, where: str, problems: list[str]
) -> Columns | Tags:
    """`defaults` with what the entry gives; a null takes a column away.

    Of columns that belong together, like those of the question, either all are the defaults, or
    only those that are named are read.
    """
    given = entry.get(key)
    if not isinstance(given, dict):
        return defaults
    known = [one.name for one in fields(defaults)]
    removable = set(known) if isinstance(defaults, Columns) else {"system_tag"}
    accepted: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            problems.append(f'{where}: "{key}" has the unknown key {name!r}.{suggest(name, known)}')
        elif isinstance(value, str) or (value is None and name in removable):
            accepted[name] = value
        else:
            problems.append(f'{where}: "{key}"."{name}" is {_kind(value)}, expected a text.')
    if isinstance(defaults, Columns):
        taken = (group for group in _GROUPS if any(accepted.get(name) for name in group))
        accepted = {name: None for group in taken for name in group} | accepted
    return replace(defaults, **accepted)


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _kind(value: Any) -> str:
    names = {str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)
