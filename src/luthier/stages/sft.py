"""Supervised fine-tuning: every learned token of a conversation is predicted from those before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from luthier.arguments.record import Arguments
from luthier.data.catalog import FORMATS, Reading
from luthier.data.encode import UNLEARNED, Outcome
from luthier.data.formats.fields import refuse_media
from luthier.data.pack import RowPacker
from luthier.data.report import Counts
from luthier.data.road import Encoding
from luthier.losses.tokens import TOKEN_LOSSES, TokenLoss
from luthier.records import Conversation, Origin
from luthier.stages.conversing import Conversing
from luthier.stages.next_token import NextToken
from luthier.stages.stage import STAGES
from luthier.templates.fit import kind_of
from luthier.templates.template import Template

if TYPE_CHECKING:
    from luthier.arguments.finetuning import FinetuningArguments
    from luthier.batching.batch import MicroBatch

ONLY_ASKED = "no answer, only generated from"


@STAGES.register("sft")
class SupervisedFineTuning(Conversing, NextToken):
    """Learns the answers of conversations; with `packing` several of them share an example."""

    record = Conversation

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.token_loss = next(iter(_token_losses(self.knobs)), None)
        if self.reads_reference(self.knobs):
            self.needs_reference = True
            self.keeps_reference = self.draws_dropout = False

    @classmethod
    def reads_reference(cls, knobs: FinetuningArguments) -> bool:
        return any(each.needs_reference for each in _token_losses(knobs))

    def settings(self) -> dict[str, Any]:
        options = asdict(self.options) | {"packing": bool(self.data.packing)}
        switches = ("packing", "split_special_tokens")  # left out where they are off
        said = {name: value for name, value in options.items() if value or name not in switches}
        return {"template": self.encoder.template.fingerprint(), **said}

    def read(self, values: Mapping[str, Any], reading: Reading, origin: Origin) -> Conversation:
        refuse_media(values, reading.description)
        return FORMATS.get(reading.description.formatting or "alpaca")(values, reading, origin)

    def passes_over(self, record: Conversation, encoding: Encoding, counts: Counts) -> bool:
        if record.weight == 0:
            counts.leave_out(UNLEARNED)
            return True
        is_learned = encoding.purpose == "learn"
        if is_learned and not encoding.reading.needs_answer and not record.messages[-1].content:
            counts.remarks[ONLY_ASKED] = counts.remarks.get(ONLY_ASKED, 0) + 1
            return True
        if isinstance(self.template, Template):
            kind = kind_of(record, self.template)
            counts.kinds[kind] = counts.kinds.get(kind, 0) + 1
        return False

    def examples(self, records: Sequence[Conversation]) -> list[Outcome]:
        return self.encoder.learn(records)

    def measure_reference(self, reference: Any, batch: MicroBatch) -> MicroBatch:
        """With `use_asft_loss` whole distributions are asked for, too large to be kept."""
        if self.keeps_reference:
            return super().measure_reference(reference, batch)
        from luthier.modeling.reads import read_distribution

        return replace(batch, against=read_distribution(reference, batch))

    def prompts(self, records: Sequence[Conversation]) -> list[Outcome]:
        return self.encoder.ask(records)

    def packer(self, *, is_trained: bool) -> RowPacker | None:
        """Only what is trained on is packed: a mean over tokens is the same without."""
        return RowPacker(self.data.cutoff_len) if self.data.packing and is_trained else None


def _token_losses(knobs: FinetuningArguments) -> list[TokenLoss]:
    return [each for name, each in TOKEN_LOSSES.items() if getattr(knobs, f"use_{name}_loss")]
