"""Pre-training: every token of a text is predicted from those before."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.data.catalog import Reading
from luthier.data.encode import Outcome
from luthier.data.formats.text import detect_text, read_text
from luthier.data.pack import DocumentPacker
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.data.tokenize import TYPECODE, Ids, TextTokenizer
from luthier.errors import DataError
from luthier.example import Example
from luthier.records import Origin, Text
from luthier.stages.next_token import NextToken
from luthier.stages.stage import STAGES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.catalog import DatasetDescription
    from luthier.templates.chat_template import Renders

EMPTY = "no text in it"


@STAGES.register("pt")
class PreTraining(NextToken):
    """Learns raw text, and what ends it; documents are cut into blocks."""

    record = Text
    keeps_order = True
    derived_metrics = ("perplexity",)

    def fit(self, tokenizer: PreTrainedTokenizerBase, template: Renders | None) -> None:
        super().fit(tokenizer, None)
        self.encoder = TextEncoder(tokenizer, splits_special=self.options.split_special_tokens)
        self.blocks = DocumentPacker(
            self.data.cutoff_len,
            is_packed=self.data.packing is not False,
            is_isolated=self.data.neat_packing is not False,
            overlap=self.data.document_overlap,
            bos=find_bos(tokenizer),
        )

    def fingerprint(self) -> dict[str, Any]:
        """EOS and special tokens: a document is whole, however long."""
        split = {"split_special_tokens": True} if self.encoder.splits_special else {}
        return {"stage": "pt", "eos": self.encoder.tokenizer.eos_token_id, **split}

    def settings(self) -> dict[str, Any]:
        return {
            "stage": "pt",
            "cutoff_len": self.blocks.size,
            "packing": self.blocks.is_packed,
            "neat_packing": self.blocks.is_isolated,
            "document_overlap": self.blocks.overlap,
            **({"split_special_tokens": True} if self.encoder.splits_special else {}),
        }

    def detect(
        self, description: DatasetDescription, rows: Sequence[Any], *, needs_answer: bool = True
    ) -> tuple[DatasetDescription, str]:
        return detect_text(description, rows) if rows else (description, "")

    def read(self, values: Mapping[str, Any], reading: Reading, origin: Origin) -> Text:
        return read_text(values, reading.description.columns.prompt or "text", origin)

    def passes_over(self, record: Text, encoding: Encoding, counts: Counts) -> bool:
        is_empty = not record.content or record.content.isspace()
        if is_empty:
            counts.leave_out(EMPTY)
        return is_empty

    def examples(self, records: Sequence[Text]) -> list[Outcome]:
        return [[Example(ids, None, len(ids))] for ids in self.encoder.encode(records)]

    def packer(self, *, is_trained: bool) -> DocumentPacker:
        """Cuts documents, trained on or not: a whole one may be of any length."""
        return self.blocks

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity, `exp(loss)`, of an evaluation; infinite where that has no float."""
        if "loss" not in means:
            return {}
        try:
            return {"perplexity": math.exp(means["loss"])}
        except OverflowError:
            return {"perplexity": math.inf}


class TextEncoder:
    """Encodes many texts with one call of the tokenizer, without added special tokens but EOS.

    Args:
        tokenizer: one that has EOS.
        splits_special: whether special tokens in a text are read as their letters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, splits_special: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("EOS ends every text, and this tokenizer has none.")
        self.tokenizer, self.splits_special = tokenizer, splits_special
        self._end = array(TYPECODE, [tokenizer.eos_token_id])
        self._texts = TextTokenizer(tokenizer, splits_special=splits_special)

    def encode(self, texts: Sequence[Text]) -> list[Ids]:
        """The ids of each text, EOS behind them."""
        contents, marks = [one.content for one in texts], self._texts.marks
        if marks is not None:
            contents = list(map(marks.mark, contents))
        return [ids + self._end for ids in self._texts.encode(contents)]


def find_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """BOS, if the tokenizer puts it before a text by itself."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    with_bos, without = (
        tokenizer("a", add_special_tokens=is_added)["input_ids"] for is_added in (True, False)
    )
    return int(bos) if with_bos[:1] == [bos] != without[:1] else None
