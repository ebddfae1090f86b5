"""the data's way: files -> rows -> encoded, mixed, packed sets to train and evaluate on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from luthier import console
from luthier.data.cache import (
    Store,
    cache_root,
    get_or_build,
    hash_of,
    hash_of_tokenizer,
)
from luthier.data.catalog import (
    Catalog,
    load_catalog,
    metric_names,
)
from luthier.data.check import refuse_weights
from luthier.data.mixture import (
    MixedRow,
    Mixture,
    Windows,
    column_of,
    draw_rows,
    hold_out,
    mix,
    place_drawn,
    split,
)
from luthier.data.pack import pack
from luthier.data.reading import DatasetReader
from luthier.data.report import DataReport, SetReport, nothing_left
from luthier.data.road import Encoding, Purpose, Road
from luthier.data.shards import Task, make_shards
from luthier.data.sources import Source
from luthier.data.stream import MixedEncoding, Stream
from luthier.data.tokenized import Tokenized, is_written
from luthier.errors import DataError
from luthier.example import WEIGHTS, ExampleSet
from luthier.secrecy import masked

if TYPE_CHECKING:
    import datasets

    from luthier.arguments.data import DataArguments
    from luthier.arguments.record import Arguments


@dataclass
class EncodedDatasets:
    """What a run trains, evaluates and predicts on.

    Attributes:
        train: None without training.
        eval: by the name of the set, which is empty for a single one.
        predict: prompts, with the answers as labels, by the same names.
        report: what became of the rows.
        folders: where the encoded data sets are kept.
    """

    train: ExampleSet | None = None
    eval: dict[str, ExampleSet] = field(default_factory=dict)
    predict: dict[str, ExampleSet] = field(default_factory=dict)
    report: DataReport = field(default_factory=DataReport)
    folders: list[Path] = field(default_factory=list)


def load_datasets(arguments: Arguments, road: Road) -> EncodedDatasets:
    """Reads, checks, encodes, mixes and splits the data sets of a run.

    Args:
        arguments: names of the data sets and how they are used.
        road: of the stage, which has taken its tokenizer and template.

    Raises:
        DataError: if a data set cannot be read as described, has too many wrong rows, or nothing
            is left of it.
    """
    assert road.tokenizer is not None, "fit() comes first"
    loader = _Loader(arguments, road)
    path = arguments.data.tokenized_path
    if path is None:
        return loader.load()
    kept = Tokenized(Path(path).expanduser(), loader.ingredients())
    if is_written(path):
        sets, report = kept.read(len(road.tokenizer), needs_prompts=loader.answers)
        found = EncodedDatasets(**sets, report=report, folders=[kept.folder])
    else:
        found = loader.load()
        kept.write(
            {"train": found.train, "eval": found.eval, "predict": found.predict}, found.report
        )
        found.folders.append(kept.folder)
    return found


class _Kept(NamedTuple):
    """The examples of one data set, and what became of its rows."""

    examples: datasets.Dataset
    report: SetReport


class _Loader:
    """The data sets of one run; each is encoded once for a purpose."""

    def __init__(self, arguments: Arguments, road: Road) -> None:
        assert road.tokenizer is not None
        self.road = road
        self.arguments, self.data = arguments, arguments.data
        self.seed = arguments.training.seed
        self.catalog = _load_catalog(self.data)
        self.report = DataReport()
        self.answers = road.predicts
        self._tokenizer_hash = hash_of_tokenizer(road.tokenizer)
        self._kept: dict[tuple[str, Purpose, bool], _Kept] = {}
        self._folders: dict[Path, None] = {}

    def load(self) -> EncodedDatasets:
        """Everything the arguments ask for."""
        import numpy

        training, data, answers = self.arguments.training, self.data, self.answers
        if training.do_train and not data.dataset:
            raise DataError(
                f"tokenized_path {data.tokenized_path} holds nothing yet, and no dataset is named. "
                "Name the data to encode, or the folder that another run wrote."
            )
        found = EncodedDatasets(report=self.report)
        if training.do_train and data.streaming:
            self._stream(found)
        elif data.dataset and (training.do_train or data.val_size):
            kept = [self._encode(name, "learn") for name in data.dataset]
            joined = _join([one.examples for one in kept])
            order = self._mix(data.dataset, kept)
            if data.val_size:
                if data.val_size == 1:
                    console.info("val_size 1 is a number of rows: one is kept for evaluation")
                rows = self._number_rows(data.dataset, kept)
                train, held = split(rows[order], data.val_size, self.seed)
                if self.road.keeps_order:
                    train, held = numpy.sort(train), numpy.sort(held)
                once = order[held][numpy.sort(numpy.unique(order[held], return_index=True)[1])]
                if len(once) < len(held):
                    console.info(
                        f"val_size: {len(once):,} examples are evaluated on; they were drawn "
                        f"{len(held):,} times, and are never trained on"
                    )
                found.eval[""] = self._pack(joined.select(once), kept, "eval")
                if answers:
                    found.predict[""] = self._prompts_of(once, data.dataset, kept)
                order = order[train]
            if training.do_train:
                found.train = self._pack(joined.select(order), kept, "train")
        if data.eval_dataset:
            groups = {"": data.eval_dataset}
            if data.eval_on_each_dataset:
                called = metric_names(data.eval_dataset)
                singles = ((name,) for name in data.eval_dataset)
                groups = dict(zip(called, singles, strict=True))
            for group, names in groups.items():
                learned, kept = self._evaluated(names, "learn", allow_prompts=answers)
                if len(learned):
                    found.eval[group] = self._pack(learned, kept, group or "eval")
                if answers:
                    prompts, _ = self._evaluated(names, "answer", allow_prompts=True)
                    found.predict[group] = ExampleSet(prompts)
        found.folders = list(self._folders)
        report = self.report
        if found.train is not None:
            report.num_train = found.train.num_examples or 0
        report.num_eval = {name: len(one) for name, one in found.eval.items()}
        report.num_predict = {name: len(one) for name, one in found.predict.items()}
        for name, count in report.num_predict.items():
            if not count:
                raise DataError(f"no prompt is left to answer{f' in {name!r}' if name else ''}.")
        if line := report.line():
            console.info(line)
        return found

    def _stream(self, found: EncodedDatasets) -> None:
        """Opens the training sets; their rows are read as training goes."""
        arguments, data, road = self.arguments, self.data, self.road
        training = arguments.training
        opened = [self._open(name, "learn", in_place=True) for name in data.dataset]
        descriptions = [reader.description for reader, _ in opened]
        sources = [reader.source for reader, _ in opened]
        reports = [report for _, report in opened]
        self.report.sets += reports
        seed = (training.seed if training.data_seed is None else training.data_seed) % 2**64
        is_shuffled = not (
            arguments.finetuning.disable_shuffling
            or training.train_sampling_strategy == "sequential"
        )
        asked, most = [one.num_samples for one in descriptions], data.max_samples

        def begin() -> Windows:
            return Windows(mixture(), data.buffer_size, is_shuffled=is_shuffled)

        def mixture() -> Mixture:
            return Mixture(sources, data.mix_strategy, data.interleave_probs, seed, asked, most)

        def encoding(purpose: Purpose, **given: Any) -> MixedEncoding:
            readings = map(road.reading, descriptions)
            encodings = tuple(Encoding(road, reading, purpose) for reading in readings)
            return MixedEncoding(data.dataset, encodings, **given)

        held: list[MixedRow] = []
        rule, said = None, ""
        if data.val_size:
            held, rule, said = hold_out(mixture(), descriptions, data.val_size)
        is_mixed = len(sources) > 1
        settings = {
            "content of dataset": [[*report.hashes.values()] for report in reports],
            "buffer_size": data.buffer_size if is_shuffled else None,
            "seed": seed,
            "disable_shuffling": not is_shuffled,
            "mix_strategy": data.mix_strategy if is_mixed else None,
            "interleave_probs": list(data.interleave_probs),
            "val_size": data.val_size,
            "max_samples": most,
            "num_samples": asked,
            "sample_by": data.sample_by,
        }
        packer = road.packer(is_trained=True)
        learned = encoding("learn", packer=packer, held_out=rule)
        found.train = Stream(
            begin,
            learned,
            reports,
            settings,
            data,
            num_workers=training.dataloader_num_workers or (data.preprocessing_num_workers or 0),
            num_ahead=training.dataloader_prefetch_factor or 2,
        )
        for report in reports:
            if report.detected:
                console.info(f"data set {report.name!r}: {report.detected}")
        order = f"shuffled among {data.buffer_size:,}" if is_shuffled else "in their order"
        console.info(f"streaming: rows are read and encoded as they are needed, {order}")
        if is_mixed and data.mix_strategy == "concat":
            console.info(
                "mix_strategy concat streams one data set after the other; interleave_under, over "
                "or once mixes them"
            )
        if held:
            console.info(said)
            packer = road.packer(is_trained=False)
            found.eval[""] = encoding("learn", packer=packer).keep(held)
            if self.answers:
                found.predict[""] = encoding("answer").keep(held)

    def ingredients(self) -> dict[str, Any]:
        """What decides about the encoded data, in the words of the configuration."""
        data = self.data
        draws = data.val_size or data.mix_strategy != "concat"
        return {
            "tokenizer": self._tokenizer_hash,
            **self.road.settings(),
            "max_samples": data.max_samples,
            "mix_strategy": data.mix_strategy if len(data.dataset) > 1 else "concat",
            "interleave_probs": list(data.interleave_probs),
            "val_size": data.val_size,
            "seed": self.seed if draws else None,
            "dataset": self._contents(data.dataset),
            "eval_dataset": self._contents(data.eval_dataset),
            "eval_on_each_dataset": bool(data.eval_dataset) and data.eval_on_each_dataset,
        }

    def _contents(self, names: Sequence[str]) -> list[Any] | None:
        """What is read of each data set and how; None where no file of it is here."""
        contents: list[Any] = []
        for name in names:
            try:
                description = self.catalog.describe(name)
                source = Source(description) if description.place == "file" else None
            except DataError:
                return None
            hashes = (
                [masked(description.location)] if source is None else [*source.hashes().values()]
            )
            said = asdict(replace(description, name="", location="", home=None))
            contents.append([hashes, said])
        return contents

    def _mix(self, names: Sequence[str], kept: Sequence[_Kept]) -> Any:
        """The places of the training examples by `mix_strategy`, where the sets are joined."""
        import numpy

        drawn = [self._draw(name, one) for name, one in zip(names, kept, strict=True)]
        for places, one in zip(drawn, kept, strict=True):
            if not len(places):
                raise nothing_left([one.report])
        data = self.data
        order = mix([*map(len, drawn)], data.mix_strategy, data.interleave_probs, self.seed)
        starts = numpy.cumsum([0, *(len(one.examples) for one in kept)])
        places = [places + start for places, start in zip(drawn, starts, strict=False)]
        return numpy.concatenate(places)[order]

    def _draw(self, name: str, kept: _Kept) -> Any:
        """The places of the examples that are used: all, or as `num_samples` draws their rows."""
        import numpy

        num_samples = self.catalog.describe(name).num_samples
        if num_samples is None:
            return numpy.arange(len(kept.examples))
        num_rows = kept.report.num_in_files
        drawn = draw_rows(num_rows, num_samples, self.data.max_samples, self.seed)
        wanted = numpy.unique(drawn)  # rows are numbered among those that were drawn
        return place_drawn(_rows(kept), numpy.searchsorted(wanted, drawn))

    def _number_rows(self, names: Sequence[str], kept: Sequence[_Kept]) -> Any:
        """The row that each example is of: a place in a content, whatever the set is called."""
        import numpy
        import pyarrow
        import pyarrow.compute

        contents = [(*one.report.hashes.values(),) for one in kept]
        draws = [self.catalog.describe(name).num_samples for name in names]
        numbers = numpy.concatenate([*map(_rows, kept)])
        if len({*contents}) < len({*zip(contents, draws, strict=True)}):
            # each draw numbers rows on its own: lines tell them, where each row has its own
            parts = [
                one.examples.select_columns(["origin"]).with_format("arrow")[:]["origin"]
                for one in kept
            ]
            lines = pyarrow.chunked_array([chunk for part in parts for chunk in part.chunks])
            known = lines.unique()
            if len(known) >= len(numpy.unique(_rows(kept[0]))):
                numbers = pyarrow.compute.index_in(lines, known).to_numpy()
        numbers = numpy.unique(numbers, return_inverse=True)[1]
        of_set = [contents.index(content) for content in contents]
        lengths = [len(one.examples) for one in kept]
        return numpy.repeat(of_set, lengths) * (numbers.max() + 1) + numbers

    def _pack(self, dataset: datasets.Dataset, kept: Sequence[_Kept], part: str) -> ExampleSet:
        """Examples of some sets, packed as the stage does it."""
        packer, data = self.road.packer(is_trained=part == "train"), self.data
        if packer is None:
            return ExampleSet(dataset)
        for one in kept:
            if WEIGHTS in one.examples.column_names:
                raise refuse_weights(one.report.name, "packing")
        key = hash_of(
            {
                "sets": [one.report.key for one in kept],
                "mix": [data.mix_strategy, list(data.interleave_probs)],
                "part": [part, data.val_size],
                "seed": self.seed if data.val_size or data.mix_strategy != "concat" else None,
                "packing": {"by": type(packer).__name__, **asdict(packer)},
            }
        )
        root = cache_root(self.arguments.model.cache_dir)
        packed, packing, folder = pack(
            root, key, part, dataset, packer, overwrite=data.overwrite_cache
        )
        self._folders[folder] = None
        self.report.packed.append(packing)
        console.info(packer.line(packing))
        return ExampleSet(packed)

    def _evaluated(
        self, names: Sequence[str], purpose: Purpose, allow_prompts: bool
    ) -> tuple[datasets.Dataset, list[_Kept]]:
        """Evaluation sets one after the other, so that every row counts once."""
        kept = [self._encode(name, purpose, allow_prompts=allow_prompts) for name in names]
        drawn = zip(names, kept, strict=True)
        return _join([one.examples.select(self._draw(name, one)) for name, one in drawn]), kept

    def _prompts_of(self, places: Any, names: Sequence[str], kept: Sequence[_Kept]) -> ExampleSet:
        """The rows at some places of all sets, encoded as prompts instead."""
        import numpy

        prompts = [self._encode(name, "answer") for name in names]
        of_set = numpy.repeat(numpy.arange(len(kept)), [len(one.examples) for one in kept])
        of_row = numpy.concatenate([*map(_rows, kept)])
        asked: dict[tuple[int, int], int] = {}
        for at, one in enumerate(prompts):
            start = len(asked)
            asked |= {(at, row): start + n for n, row in enumerate(_rows(one).tolist())}
        pairs = list(zip(of_set[places].tolist(), of_row[places].tolist(), strict=True))
        if self.data.on_overlong == "split":  # the parts of a row are answered once
            pairs = list(dict.fromkeys(pairs))
        joined = _join([one.examples for one in prompts])
        chosen = joined.select([asked[pair] for pair in pairs if pair in asked])
        return ExampleSet(chosen)

    def _open(
        self, name: str, purpose: Purpose, *, in_place: bool = False, is_evaluated: bool = False
    ) -> tuple[DatasetReader, SetReport]:
        """A data set whose first rows were looked at, and an empty report."""
        reader = DatasetReader(
            self.arguments, self.catalog, name, self.road, is_evaluated, in_place=in_place
        )
        called, source = masked(name), reader.source
        if source.told:
            console.once(f"data set {called!r}: {source.told}")
        report = SetReport(
            name=called,
            purpose=purpose,
            scores=self.road.scores,
            detected=reader.detect(),
            hashes=source.hashes(),
        )
        report.format = reader.description.formatting or ""
        return reader, report

    def _encode(self, name: str, purpose: Purpose, allow_prompts: bool = False) -> _Kept:
        """One data set, from the cache or built, its report said and its budget checked."""
        asked = (name, purpose, allow_prompts)
        if asked in self._kept:
            return self._kept[asked]
        data, model = self.data, self.arguments.model
        reader, report = self._open(name, purpose, is_evaluated=allow_prompts)
        source, given = reader.source, reader.source.description
        report.key = hash_of(
            {
                "description": asdict(replace(given, name="", location="", home=None)),
                "files": report.hashes,
                "rows": [data.max_samples, given.num_samples and self.seed],
                "encoding": self.road.fingerprint(),
                "purpose": [purpose, allow_prompts],
                "tokenizer": self._tokenizer_hash,
            }
        )

        def build(store: Store) -> dict[str, Any]:
            encoding = Encoding(self.road, reader.reading, purpose)
            tasks = self._tasks(source, report)
            make_shards(encoding, tasks, store, data.preprocessing_num_workers or 1)
            for number in sorted(store.shards):
                report.add(store.shards[number].counts)
            return asdict(report)

        root = cache_root(model.cache_dir)
        published = get_or_build(root, report.key, build, overwrite=data.overwrite_cache)
        self._folders[published.folder] = None
        found = published.report | {"name": report.name, "was_cached": published.was_there}
        report = SetReport(**found)
        self.report.sets.append(report)
        report.say(data)
        self._kept[asked] = _Kept(published.open(report.key), report)
        return self._kept[asked]

    def _tasks(self, source: Source, report: SetReport) -> Iterator[Task]:
        """The chunks of the rows that are used, by `num_samples` and `max_samples`."""
        num_samples, most = source.description.num_samples, self.data.max_samples
        if num_samples is None and most is None:
            for number, chunk in enumerate(source.chunks()):
                yield Task(number, number << 32, chunk)
            return
        if num_samples is None:
            wanted: Any = range(most or 0)
        else:
            report.num_in_files = sum(1 for chunk in source.chunks() for _ in chunk)
            drawn = draw_rows(report.num_in_files, num_samples, most, self.seed)
            report.num_drawn = len(drawn)
            wanted = sorted({*drawn.tolist()})
        first, taken, number = 0, 0, 0
        for chunk in source.chunks():
            if not wanted or first > wanted[-1]:
                return
            count = sum(1 for _ in chunk)
            if isinstance(wanted, range):
                here: Any = range(min(count, len(wanted) - first))
            else:
                start = bisect_left(wanted, first)
                here = frozenset(
                    at - first for at in wanted[start : bisect_left(wanted, first + count)]
                )
            if here:
                yield Task(number, taken, chunk, here)
                number += 1
            first, taken = first + count, taken + len(here)


def _load_catalog(data_args: DataArguments) -> Catalog:
    """The catalog; empty where it cannot be had and the data was encoded elsewhere."""
    try:
        catalog = load_catalog(data_args.dataset_dir, allow_outside=data_args.allow_outside)
        return replace(catalog, sample_by=data_args.sample_by)
    except DataError as error:
        if not is_written(data_args.tokenized_path):
            raise
        return Catalog({}, str(data_args.dataset_dir), Path("."), absence=str(error))


def _join(sets: Sequence[datasets.Dataset]) -> datasets.Dataset:
    import datasets

    return sets[0] if len(sets) == 1 else datasets.concatenate_datasets([*sets])


def _rows(kept: _Kept) -> Any:
    """The row number of each example."""
    return column_of(kept.examples, "row")
