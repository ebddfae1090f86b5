"""what a reasoning template does with thoughts: on, off, kept.

A *thought* stands between the template's two thought words, or between `<think>` and `</think>`, at
the start of an answer. Only the tags count, not the space around them, and a closing tag without an
opening one ends a thought, too; what is learned has the template's own form. One policy holds for
all reasoning templates and is set by two arguments.

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
           Earlier is what stands before the user's last question: the thoughts that led to the
           tool calls since then stay.
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

from luthier.records import Message


@dataclasses.dataclass(frozen=True, slots=True)
class Thinking:
    """The policy of this module for one reasoning template."""

    words: tuple[str, str]  # what opens and what closes a thought
    empty: str  # the text of an empty thought
    is_enabled: bool | None  # `enable_thinking`
    is_preserved: bool  # `preserve_thinking`

    def is_in(self, content: str) -> bool:
        """Whether one of the thought words stands in `content`."""
        return any(word.strip() in content for word in self.words)

    def without(self, content: str) -> str:
        """`content` without its thoughts and without the newlines then leading it.

        A thought in the middle of the text is one where it has exactly the template's form.
        """
        opening, closing = map(re.escape, self.words)
        text = split_thought(content, self.words)[1]
        return re.sub(f"{opening}.*?{closing}", "", text, flags=re.DOTALL).lstrip("\n")

    def as_trained(
        self, messages: Sequence[Message], *, is_history_masked: bool
    ) -> tuple[Message, ...]:
        """The messages with the thoughts that training shows."""
        is_shortened = is_history_masked and not self.is_preserved
        first = _find_last_question(messages) if is_shortened else 0
        return tuple(
            self._show(message, at >= first and self.is_enabled is not False)
            for at, message in enumerate(messages)
        )

    def as_prompted(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages before an answer with the thoughts that a prompt shows."""
        first = _find_last_question(messages)
        return tuple(
            self._show(message, self.is_preserved or (at >= first and self.is_enabled is not False))
            for at, message in enumerate(messages)
        )

    def as_answered(self, message: Message) -> Message:
        """The answer with the thoughts that are learned."""
        return self._show(message, self.is_enabled is not False)

    def _show(self, message: Message, with_thoughts: bool) -> Message:
        if message.role not in ("assistant", "function"):
            return message
        said = spoken(message)
        shown = shape_thought(said, self.words, self.empty) if with_thoughts else self.without(said)
        if shown == said:
            return message
        if message.role == "function":
            return dataclasses.replace(message, said=shown)
        return dataclasses.replace(message, content=shown)


COMMON_WORDS = ("<think>", "</think>")
"""What data sets write around a thought, whatever the model."""


def split_thought(content: str, words: tuple[str, str]) -> tuple[str | None, str]:
    """The thought at the start of `content`, None where there is none, and what is behind it.

    The newlines next to a tag are part of it; where there are none, all space is. `COMMON_WORDS`
    surround thoughts as `words` do.
    """
    for opening, closing in ((words[0].strip(), words[1].strip()), COMMON_WORDS):
        if closing not in content:
            continue
        before, _, text = content.partition(closing)
        head, opened, thought = before.partition(opening)
        if not (opened and head.strip()):
            thought = thought if opened else head
            thought = thought.lstrip("\n" if thought[:1] == "\n" else None)
            thought = thought.rstrip("\n" if thought[-1:] == "\n" else None)
            return thought, text.lstrip("\n" if text[:1] == "\n" else None)
    return None, content


def shape_thought(content: str, words: tuple[str, str], empty: str) -> str:
    """`content` with the thought at its start between `words`, or `empty` for one without words."""
    thought, text = split_thought(content, words)
    if thought is None:
        return content
    return (words[0] + thought + words[1] if thought else empty) + text


def spoken(message: Message) -> str:
    """What is said in a message, the calls of a function message left out."""
    return message.said if message.role == "function" else message.content


def _find_last_question(messages: Sequence[Message]) -> int:
    asked = [position for position, message in enumerate(messages) if message.role == "user"]
    return asked[-1] if asked else 0
