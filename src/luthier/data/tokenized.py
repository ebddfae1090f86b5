"""`tokenized_path`: the encoded data of a run in a folder that can be moved to another machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.arguments.record import facts
from luthier.data.check import show_setting
from luthier.data.report import DataReport, Packing, SetReport
from luthier.errors import DataError
from luthier.example import ExampleSet, count_learned, read_examples

if TYPE_CHECKING:
    import datasets

FINGERPRINT = "luthier.json"

_FOREIGN = ("dataset_dict.json", "dataset_info.json")
"""What `datasets` writes into a folder, one of them in each."""

_SINGLE_SETS = ("dataset", "eval_dataset")


def is_written(path: str | None) -> bool:
    """Whether the folder of `tokenized_path` holds something."""
    if path is None:
        return False
    folder = Path(path).expanduser()
    return folder.is_dir() and any(folder.iterdir())


@dataclass
class Tokenized:
    """A folder of encoded data, and what it has to be made of."""

    folder: Path  # `tokenized_path`
    ingredients: Mapping[str, Any]
    """What decides about the encoded data of this run, by the names that users know. A data set's
    content is None where it is not on this machine."""

    def write(self, sets: Mapping[str, Any], report: DataReport) -> None:
        """Writes the sets of a run, by the first rank; they appear together, by one renaming."""
        import datasets

        if not console.is_main_process():
            return
        parts = [("train", "", sets["train"])] if sets["train"] is not None else []
        parts += [
            (kind, name, one) for kind in ("eval", "predict") for name, one in sets[kind].items()
        ]
        stage = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.part")
        were_shown = not datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            stage.mkdir(parents=True)
            listed = []
            for number, (kind, name, one) in enumerate(parts):
                one.table.save_to_disk(str(stage / f"{number}-{kind}"))
                listed.append([kind, name, f"{number}-{kind}"])
            content = {
                "ingredients": dict(self.ingredients),
                "sets": listed,
                "report": report.as_dict(),
            }
            text = json.dumps(content, ensure_ascii=False, indent=1)
            (stage / FINGERPRINT).write_text(text, encoding="utf-8")
            stage.replace(self.folder)
        except OSError as error:
            shutil.rmtree(stage, ignore_errors=True)
            raise DataError(
                f"tokenized_path {self.folder} cannot be written: {error.strerror or error}. Name "
                "a folder that is absent or empty, on a disk with room."
            ) from error
        finally:
            if were_shown:
                datasets.enable_progress_bars()
        console.info(f"encoded data is written to tokenized_path {self.folder}")

    def read(self, vocabulary: int, *, needs_prompts: bool) -> tuple[dict[str, Any], DataReport]:
        """The sets of the folder, if it was made of what this run is made of.

        `vocabulary` is the tokenizer's size, for folders of other tools that do not say theirs.

        Raises:
            DataError: naming everything that differs.
        """
        import datasets

        if not (self.folder / FINGERPRINT).is_file():
            found, report = self._read_foreign(vocabulary)
        else:
            text = (self.folder / FINGERPRINT).read_text(encoding="utf-8")
            try:
                content = json.loads(text)
                self._compare(content["ingredients"])
                found = {"train": None, "eval": {}, "predict": {}}
                said = content["report"]
                for kind, name, part in content["sets"]:
                    one = datasets.load_from_disk(str(self.folder / part))
                    if kind != "predict" and "num_units" not in one.column_names:
                        raise DataError(
                            f"tokenized_path {self.folder} was written by an earlier version, "
                            f"whose columns are {', '.join(one.column_names)}. Remove the folder "
                            "to have it written anew."
                        )
                    if kind == "train":
                        found["train"] = ExampleSet(one)
                    else:
                        found[kind][name] = ExampleSet(one)
                report = DataReport(**said)
                report.packed = [Packing(**one) for one in said["packed"]]
                report.sets = [SetReport(**(one | {"was_cached": True})) for one in said["sets"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"tokenized_path {self.folder} cannot be read ({error}). Remove the folder to "
                    "have it written anew."
                ) from error
        if needs_prompts and not found["predict"]:
            raise DataError(
                f"tokenized_path {self.folder} holds no prompts to answer: it was written without "
                "predict_with_generate. Name another folder, or leave tokenized_path out."
            )
        console.info(f"encoded data is read from tokenized_path {self.folder}")
        if line := report.line():
            console.info(line)
        return found, report

    def _compare(self, theirs: Mapping[str, Any]) -> None:
        differing = []
        # they say nothing when the run names no data and takes what is there
        drawing = {name for name, known in facts().items() if known.draws}
        for name, mine in self.ingredients.items():
            other = theirs.get(name)
            if mine == other:
                continue
            if name in _SINGLE_SETS:
                if mine is None:
                    console.info(f"{name} is not on this machine and was not compared")
                elif mine:
                    differing.append(f"{name}: {_difference(mine, other or [])}")
            elif name == "template" and isinstance(other, str):
                was, now = (str(one).rpartition("-")[0] for one in (other, mine))
                differing.append(
                    f"another template ({f'{was}, now' if was != now else 'another'} {now})"
                )
            elif name in ("tokenizer", "template"):
                differing.append(f"another {name}")
            elif name in drawing and not self.ingredients["dataset"]:
                continue
            else:
                differing.append(f"{name} {show_setting(other)}, now {show_setting(mine)}")
        if differing:
            listed = "".join(f"\n  {one}" for one in differing)
            raise DataError(
                f"tokenized_path {self.folder} was made otherwise than this run asks for:{listed}\n"
                "Name another folder, remove this one to have it written anew, or set what it was "
                "made with."
            )

    def _read_foreign(self, vocabulary: int) -> tuple[dict[str, Any], DataReport]:
        """A folder that another tool wrote with `datasets`: a training set and perhaps others."""
        import datasets

        if not any((self.folder / name).is_file() for name in _FOREIGN):
            raise DataError(
                f"tokenized_path {self.folder} holds something else than encoded data. Name a "
                "folder that is absent or empty, or one that was written as tokenized_path."
            )
        try:
            loaded = datasets.load_from_disk(str(self.folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"tokenized_path {self.folder} cannot be read: {error}.") from error
        parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
        found: dict[str, Any] = {"train": None, "eval": {}, "predict": {}}
        report = DataReport()
        for name, one in parts.items():
            counted = _count(one, self.folder / name, vocabulary)
            if name == "train":
                found["train"], report.num_train = counted, len(one)
            else:
                short = name.removeprefix("validation").removeprefix("_")
                found["eval"][short], report.num_eval[short] = counted, len(one)
        console.warn(
            f"tokenized_path {self.folder} was written by another tool and does not say of which "
            "tokenizer, template, cutoff_len and data it is made: nothing could be compared"
        )
        return found, report


def _difference(mine: list[Any], theirs: list[Any]) -> str:
    if len(mine) != len(theirs):
        return f"{len(theirs)} data sets there, {len(mine)} now"
    number = next(
        at for at, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]
    )
    what = "content" if mine[number][0] != theirs[number][0] else "description"
    return f"another {what} of data set {number + 1}"


def _count(dataset: datasets.Dataset, place: Path, vocabulary: int) -> ExampleSet:
    """The columns that training needs, counted from ids and labels."""
    import numpy

    missing = {"input_ids", "labels"} - {*dataset.column_names}
    if missing:
        raise DataError(
            f"tokenized_path {place.parent}: the set {place.name!r} has no column "
            f"{' and no '.join(sorted(missing))}; there are {', '.join(dataset.column_names)}."
        )
    num_tokens, num_learned, highest = [], [], 0
    counted = dataset.select_columns(["input_ids", "labels"])
    for table in counted.with_format("arrow").iter(1000):
        for example in read_examples(table):
            highest = max(highest, int(example.input_ids.max(initial=0)))
            num_tokens.append(len(example.input_ids))
            num_learned.append(count_learned(example.labels))
    if highest >= vocabulary:
        raise DataError(
            f"tokenized_path {place.parent}: it holds the token {highest:,}, and this tokenizer "
            f"has {vocabulary:,}: it was made with another one."
        )
    counted = counted.add_column("num_tokens", numpy.array(num_tokens, numpy.int32))
    counted = counted.add_column("num_units", numpy.array(num_learned, numpy.int32))
    origins = [f"{place}:{n}" for n in range(1, len(dataset) + 1)]
    return ExampleSet(counted.add_column("origin", origins))
