"""rows that stand twice, and prompts that are answered in different ways."""

from __future__ import annotations

from luthier.data.check import RowError
from luthier.records import Conversation, Origin, Text


class Repeats:
    """The conversations and texts seen so far, by a hash of what they say.

    Args:
        before: those of the training data, when this is the data to evaluate on.
    """

    def __init__(self, before: Repeats | None = None) -> None:
        self.before = before
        self._rows: dict[int, Origin | None] = {}
        self._prompts: dict[int, Origin | None] = {}

    def add(self, record: Conversation | Text) -> RowError | None:
        """Remembers one, and says where it, or its prompt, stood before."""
        if isinstance(record, Text):  # without a prompt
            found = self._find(hash(record.content), None)
            self._rows.setdefault(hash(record.content), record.origin)
            return found
        conversation = record
        head = (conversation.system, conversation.tools, conversation.messages[:-1])
        row, prompt = hash((*head, conversation.messages[-1])), hash(head)
        found = self._find(row, prompt)
        self._rows.setdefault(row, conversation.origin)
        self._prompts.setdefault(prompt, conversation.origin)
        return found

    def _find(self, row: int, prompt: int | None) -> RowError | None:
        if self.before is not None:
            if row in self.before._rows:
                return RowError(
                    "",
                    "a row to evaluate on that is trained on, too",
                    "Take it out of one of the two.",
                    f" (the same as {self.before._rows[row]})",
                )
            if prompt in self.before._prompts:
                return RowError(
                    "",
                    "a prompt to evaluate on that is trained on, too",
                    "Take it out of one of the two, unless the answers are meant to differ.",
                    f" (as in {self.before._prompts[prompt]})",
                )
        if row in self._rows:
            return RowError(
                "",
                "a row that stands twice",
                "Keep one; with val_size, copies may stand on both sides.",
                f" (the same as {self._rows[row]})",
            )
        if prompt in self._prompts:
            return RowError(
                "",
                "a prompt with different answers",
                "Keep the better answer, unless both are meant.",
                f" (as in {self._prompts[prompt]})",
            )
        return None
