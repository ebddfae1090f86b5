"""what a reasoning template does with thoughts: on, off, kept.

A *thought* stands between the template's two thought words, usually `<think>` and `</think>`, at
the start of an answer. One policy holds for all reasoning templates and is set by two arguments.

`enable_thinking` says what an answer without a thought means:

    True   thinking is on. An answer without a thought gets an empty one, and the model learns to
           write it. A prompt ends with the assistant's header: the model thinks if it wants to.
    False  thinking is off. Thoughts are taken out of the answers, and every prompt ends with an
           empty thought, which is not learned.
    None   the data decides. An answer with a thought is left alone; for one without, the prompt
           ends with an empty thought, which is not learned. So does the prompt of a generation.

`preserve_thinking` says whether earlier answers keep theirs:

    False  a prompt (generation, prediction, preference pairs) shows earlier answers without their
           thoughts. So does training with `mask_history`, where only the last answer is learned.
    True   earlier answers are shown as they are.

Training on every answer (no `mask_history`) always shows earlier answers with their thoughts,
because each of them is learned where it stands. Whoever trains on conversations of several turns
with thoughts and wants training and generation to show the same history sets either
`mask_history` or `preserve_thinking`.

A chat template that is written with the tokenizer follows the same rule: a conversation that ends
with an answer is rendered as it is trained without `mask_history`, one that ends with a question
as a prompt. It takes both names as keyword arguments.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from enum import Enum

from luthier.records import Message


class Place(Enum):
    """Where the empty thought of an answer without thoughts goes."""

    NOWHERE = "nowhere"
    PROMPT = "prompt"
    ANSWER = "answer"


@dataclasses.dataclass(frozen=True, slots=True)
class Thinking:
    """The policy of this module for one reasoning template.

    Attributes:
        words: what opens and what closes a thought.
        empty: the text of an empty thought.
        is_enabled: `enable_thinking`.
        is_preserved: `preserve_thinking`.
    """

    words: tuple[str, str]
    empty: str
    is_enabled: bool | None
    is_preserved: bool

    def is_in(self, content: str) -> bool:
        """Whether one of the thought words stands in `content`."""
        return any(word.strip() in content for word in self.words)

    def without(self, content: str) -> str:
        """`content` without its thoughts and without the newlines then leading it."""
        opening, closing = map(re.escape, self.words)
        return re.sub(f"{opening}.*?{closing}", "", content, flags=re.DOTALL).lstrip("\n")

    def place(self, content: str) -> Place:
        """Where the empty thought of the answer `content` goes."""
        if self.is_in(content):
            return Place.NOWHERE
        return Place.ANSWER if self.is_enabled else Place.PROMPT

    def as_trained(
        self, messages: Sequence[Message], *, is_history_masked: bool
    ) -> tuple[Message, ...]:
        """The messages with the thoughts that training shows."""
        last = len(messages) - 1
        return tuple(
            self._without(message)
            if _is_answer(message)
            and (
                self.is_enabled is False
                or (is_history_masked and not self.is_preserved and position != last)
            )
            else message
            for position, message in enumerate(messages)
        )

    def as_prompted(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages before an answer with the thoughts that a prompt shows."""
        if self.is_preserved:
            return tuple(messages)
        return tuple(
            self._without(message) if _is_answer(message) else message for message in messages
        )

    def as_answered(self, message: Message) -> Message:
        """The answer with the thoughts that are learned."""
        return self._without(message) if self.is_enabled is False else message

    def _without(self, message: Message) -> Message:
        return dataclasses.replace(message, content=self.without(message.content))


def _is_answer(message: Message) -> bool:
    return message.role in ("assistant", "function")
