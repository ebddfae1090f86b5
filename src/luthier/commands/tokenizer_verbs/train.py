"""`luthier tokenizer train`: a byte-level BPE tokenizer, learned from texts."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from luthier import console
from luthier.errors import ArgumentsError, MissingArguments

if TYPE_CHECKING:
    from luthier.data.reader import SampleBy

SUMMARY = "learn a vocabulary: luthier tokenizer train FILE ... --vocab_size N --output FOLDER"

USAGE = """\
usage: luthier tokenizer train FILE ... --output FOLDER [--vocab_size N]
                               [--sample_by line|paragraph|document]

Learns a byte-level BPE vocabulary from texts and writes a tokenizer for transformers: any text goes
through it and comes back. FILE is text, JSON, CSV or parquet, a folder of such files, or a name of
data/dataset_info.json, as `dataset` of a configuration with stage: pt takes them.

<|endoftext|> ends texts (EOS) and <|pad|> pads; ChatML's <|im_start|> and <|im_end|> and its chat
template are there for conversations later. No BOS.

  --output FOLDER  where it is written. With a config.json beside it, the folder is a model to
                   begin from: model_name_or_path: FOLDER, train_from_scratch: true
  --vocab_size N   tokens, special ones included, 8,192 by default
  --sample_by ...  what a text of a .txt file is, a line by default"""


def run(argv: list[str]) -> int:
    """Learns a tokenizer from the files that the words name."""
    if not argv:
        raise MissingArguments([f"luthier tokenizer train needs texts to learn from.\n{USAGE}"])
    asked = _Parser(add_help=False, allow_abbrev=False)
    asked.add_argument("files", nargs="*")
    asked.add_argument("--output", type=Path)
    asked.add_argument("--vocab_size", "--vocab-size", type=int, default=8192)
    asked.add_argument(
        "--sample_by", "--sample-by", choices=("line", "paragraph", "document"), default="line"
    )
    words = asked.parse_intermixed_args(argv)
    _check(words)

    from luthier.modeling.tokenizer import train_tokenizer

    texts = _Texts(words.files, words.sample_by)
    tokenizer = train_tokenizer(iter(texts), words.vocab_size)
    for name, counts in zip(words.files, texts.counts, strict=True):
        console.info(f"{name}: {counts.num_kept:,} texts of {counts.num_read:,} rows")
        for problem in counts.problems[:3]:
            console.warn(f"skipped: {problem}")
    tokenizer.save_pretrained(words.output)
    if len(tokenizer) < words.vocab_size:
        console.warn(
            f"the texts have no more than {len(tokenizer):,} tokens to learn; vocab_size was "
            f"{words.vocab_size:,}"
        )
    console.info(f"{len(tokenizer):,} tokens, learned from {texts.bytes:,} bytes: {words.output}")
    if not (words.output / "config.json").exists():
        console.info(
            "to begin from scratch, put a model's config.json beside it; its vocab_size is made to "
            "fit"
        )
    return 0


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentsError([f"luthier tokenizer train: {message}\n{USAGE}"])


def _check(words: Namespace) -> None:
    from luthier.modeling.tokenizer import LEAST

    problems = []
    if not words.files:
        problems.append("no file to learn from is named.")
    if words.output is None:
        problems.append("--output FOLDER is missing: where to write the tokenizer.")
    elif (words.output / "tokenizer.json").exists():
        problems.append(f"{words.output} holds a tokenizer already; name another folder.")
    if words.vocab_size < LEAST:
        problems.append(
            f"--vocab_size {words.vocab_size} is too small: the 256 bytes and the special tokens "
            f"need {LEAST}."
        )
    if problems:
        raise ArgumentsError([f"luthier tokenizer train: {one}" for one in problems])


class _Texts:
    """The texts of data sets, and what became of their rows.

    Attributes:
        bytes: of the texts so far.
        counts: of the rows of each data set.
    """

    def __init__(self, names: list[str], sample_by: SampleBy) -> None:
        from luthier.arguments.parse import parse_dict
        from luthier.data.catalog import load_catalog
        from luthier.data.reading import DatasetReader
        from luthier.data.report import Counts
        from luthier.stages.stage import STAGES

        arguments = parse_dict({"stage": "pt", "dataset": names}, purpose="data")
        catalog = replace(load_catalog("data"), sample_by=sample_by)
        stage = STAGES.get("pt")(arguments)
        self.bytes = 0
        self.readers = [DatasetReader(arguments, catalog, name, stage) for name in names]
        self.counts = [Counts() for _ in names]
        for name, reader in zip(names, self.readers, strict=True):
            if reader.detected:
                console.info(f"{name}: {reader.detected}")

    def __iter__(self) -> Iterator[str]:
        """Every text that is not blank."""
        for reader, counts in zip(self.readers, self.counts, strict=True):
            for batch in reader.batches():
                counts.num_read += len(batch.rows)
                for problem in batch.problems:
                    counts.skip(problem)
                for _, text in batch.records:
                    if text.content and not text.content.isspace():
                        counts.num_kept += 1
                        self.bytes += len(text.content.encode())
                        yield text.content
