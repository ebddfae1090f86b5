"""a configuration -> the stream that a run trains on, and what of it is kept for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from luthier import console
from luthier.data.catalog import Catalog, check_readable
from luthier.data.formats.detect import NUM_LOOKED_AT
from luthier.data.reader import Row
from luthier.data.report import SetReport
from luthier.data.road import Encoding
from luthier.data.sources import HubAccess, Source
from luthier.data.streaming.encoding import MixedEncoding
from luthier.data.streaming.held_out import HeldOut, columns_of, content_of
from luthier.data.streaming.order import Drawn, Mixture, Windows
from luthier.data.streaming.stream import ROWS_OF_A_CHUNK, Stream, StreamOptions
from luthier.errors import DataError
from luthier.secrecy import masked

if TYPE_CHECKING:
    import datasets

    from luthier.arguments.record import Arguments
    from luthier.data.catalog import DatasetDescription
    from luthier.data.road import Purpose, Road

EVAL_ROWS, EVAL_ROWS_READ = 4096, 100_000
"""With a share as `val_size`: the most rows that are evaluated on, and that are read for it."""


@dataclass
class Streamed:
    """What comes of streamed data sets.

    Attributes:
        train: the stream.
        eval: rows that the stream passes over, encoded; None without `val_size`.
        predict: the same rows as prompts; None unless answers are generated.
    """

    train: Stream
    eval: datasets.Dataset | None = None
    predict: datasets.Dataset | None = None


def load_stream(
    arguments: Arguments, catalog: Catalog, road: Road, reports: list[SetReport]
) -> Streamed:
    """Opens the data sets to train on; of each only the first rows are read.

    Args:
        arguments: names of the data sets and how they are used.
        catalog: what the names stand for.
        road: of the stage.
        reports: takes one for each data set, which fills as training goes.

    Raises:
        DataError: if a data set cannot be read as described, or has no rows.
    """
    sets = _Sets(arguments, catalog, road)
    reports += sets.reports
    data, training = arguments.data, arguments.training
    held_out = sets.find_held_out() if data.val_size else None
    options = StreamOptions(
        num_workers=training.dataloader_num_workers or (data.preprocessing_num_workers or 0),
        num_ahead=training.dataloader_prefetch_factor or StreamOptions.num_ahead,
        max_bad_rows=data.max_bad_rows,
        cutoff_len=data.cutoff_len,
        allows_overlong=data.on_overlong != "error",
    )
    encoding = MixedEncoding(
        data.dataset,
        sets.encodings("learn"),
        road.packer(is_trained=True),
        held_out.rule if held_out else None,
    )
    found = Streamed(Stream(sets.windows, encoding, sets.reports, options, sets.settings()))
    for line in sets.lines():
        console.info(line)
    if held_out:
        console.info(held_out.line)
        encoding = MixedEncoding(
            data.dataset, sets.encodings("learn"), road.packer(is_trained=False)
        )
        found.eval = _encode(held_out.rows, encoding)
        if training.predict_with_generate:
            found.predict = _encode(
                held_out.rows, MixedEncoding(data.dataset, sets.encodings("answer"))
            )
    return found


@dataclass
class _Held:
    """Rows that are evaluated on, the rule that keeps them out of training, and what is said."""

    rows: list[Drawn]
    rule: HeldOut
    line: str


class _Sets:
    """The data sets of a stream."""

    def __init__(self, arguments: Arguments, catalog: Catalog, road: Road) -> None:
        self.data, self.road = arguments.data, road
        training = arguments.training
        self.seed = (training.seed if training.data_seed is None else training.data_seed) % 2**64
        self.is_shuffled = not (
            arguments.finetuning.disable_shuffling
            or training.train_sampling_strategy == "sequential"
        )
        access = HubAccess.of(arguments.model)
        self.descriptions: list[DatasetDescription] = []
        self.sources: list[Source] = []
        self.reports: list[SetReport] = []
        for name in self.data.dataset:
            description = catalog.describe(name)
            check_readable(description, road.record)
            source = Source(description, access, in_place=True)
            first = list(islice(source.rows(), NUM_LOOKED_AT))
            if not first:
                raise DataError(f"data set {name!r}: there are no rows.")
            values = [row.values for row in first if isinstance(row, Row)]
            description, detected = road.detect(description, values)
            report = SetReport(
                name=masked(name), format=description.formatting or "", detected=detected
            )
            report.hashes = source.hashes()
            self.descriptions.append(description)
            self.sources.append(source)
            self.reports.append(report)

    def encodings(self, purpose: Purpose) -> tuple[Encoding, ...]:
        """How rows of each are encoded."""
        return tuple(
            Encoding(self.road, self.road.reading(one), purpose) for one in self.descriptions
        )

    def mixture(self) -> Mixture:
        """All rows from the start."""
        most = self.data.max_samples
        asked = [one.num_samples for one in self.descriptions]
        limits = [most if n is None else min(n, most or n) for n in asked]
        return Mixture(
            self.sources,
            self.data.mix_strategy,
            self.data.interleave_probs,
            self.seed,
            limits,
            [n is not None for n in asked],
        )

    def windows(self) -> Windows:
        """The same in the order of training."""
        return Windows(self.mixture(), self.data.buffer_size, is_shuffled=self.is_shuffled)

    def settings(self) -> dict[str, Any]:
        """What decides about the order, in the words of the configuration."""
        data = self.data
        is_mixed = len(data.dataset) > 1
        return {
            "content of dataset": [[*report.hashes.values()] for report in self.reports],
            "buffer_size": data.buffer_size if self.is_shuffled else None,
            "seed": self.seed,
            "disable_shuffling": not self.is_shuffled,
            "mix_strategy": data.mix_strategy if is_mixed else None,
            "interleave_probs": list(data.interleave_probs),
            "val_size": data.val_size,
            "max_samples": data.max_samples,
            "num_samples": [one.num_samples for one in self.descriptions],
            "sample_by": data.sample_by,
        }

    def lines(self) -> Iterator[str]:
        """What the console says of the data sets."""
        for source, report in zip(self.sources, self.reports, strict=True):
            for told in filter(None, (source.told, report.detected)):
                yield f"data set {report.name!r}: {told}"
        order = (
            f"shuffled among {self.data.buffer_size:,}" if self.is_shuffled else "in their order"
        )
        yield f"streaming: rows are read and encoded as they are needed, {order}"
        if len(self.sources) > 1 and self.data.mix_strategy == "concat":
            yield (
                "mix_strategy concat streams one data set after the other; interleave_under, over "
                "or once mixes them"
            )

    def find_held_out(self) -> _Held:
        """The rows that `val_size` keeps: a share of all contents, or the first so many."""
        size = self.data.val_size
        columns = tuple(map(columns_of, self.descriptions))
        rule = HeldOut(columns, share=size if size < 1 else 0.0)
        most = int(size) if size >= 1 else EVAL_ROWS
        kept: dict[int, Drawn] = {}
        num_read = 0
        mixture = self.mixture()
        while len(kept) < most and (size >= 1 or num_read < EVAL_ROWS_READ):
            drawn = mixture.next()
            if drawn is None:
                break
            num_read += 1
            row = drawn.raw.row()
            if isinstance(row, Row) and (size >= 1 or rule.holds(drawn.number, row.values)):
                content = content_of(row.values, columns[drawn.number])
                if content is not None:
                    kept.setdefault(content, drawn._replace(raw=drawn.raw.to_send()))
        if size < 1:
            if not kept:
                raise DataError(
                    f"val_size {size:g}: none of the first {num_read:,} rows is held out. Raise "
                    "it, or give an eval_dataset."
                )
            line = (
                f"val_size: {size:.3g} of all rows, by a hash of their content, are never trained "
                f"on; {len(kept):,} of them, found in the first {num_read:,} rows, are evaluated on"
            )
            return _Held(list(kept.values()), rule, line)
        if mixture.next() is None:
            raise DataError(
                f"val_size {size:g} of {num_read:,} rows leaves nothing to train on. Lower it, or "
                "give an eval_dataset."
            )
        line = (
            f"val_size: the first {len(kept):,} different rows are evaluated on; they, and others "
            "of the same content, are never trained on"
        )
        return _Held(list(kept.values()), HeldOut(columns, contents=frozenset(kept)), line)


def _encode(rows: Sequence[Drawn], encoding: MixedEncoding) -> datasets.Dataset:
    """The examples of some rows as a data set in memory."""
    import datasets
    import pyarrow

    parts = [
        encoding.encode(rows[at : at + ROWS_OF_A_CHUNK])
        for at in range(0, len(rows), ROWS_OF_A_CHUNK)
    ]
    table = pyarrow.concat_tables([part.table for part in parts])
    if not len(table):
        raise DataError("val_size: none of the rows that are held out can be used; see data check.")
    return datasets.Dataset(table.combine_chunks())
