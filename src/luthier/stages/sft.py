"""Supervised fine-tuning: every learned token of a conversation is predicted from those before."""

from __future__ import annotations

from luthier.records import Conversation
from luthier.stages.next_token import NextToken
from luthier.stages.stage import STAGES


@STAGES.register("sft")
class SupervisedFineTuning(NextToken):
    """Learns the answers of conversations."""

    record = Conversation
