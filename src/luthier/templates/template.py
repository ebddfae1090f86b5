"""a conversation -> turns of text pieces, each learned or not."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from luthier.errors import TemplateError
from luthier.records import Conversation, Message, Piece, Special, Token, Turn
from luthier.registry import Registry
from luthier.templates.thinking import COMMON_WORDS, Thinking, shape_thought, split_thought, spoken
from luthier.templates.tool_format import (
    TOOL_CALL_WORDS,
    TOOL_FORMATS,
    FunctionCall,
    ToolFormat,
    read_calls,
    split_calls,
)

CONTENT = "{{content}}"
"""The hole. Only the first one of a text is filled; the value is inserted as it is."""

Part: TypeAlias = str | Special | Token
Slots: TypeAlias = tuple[Part, ...]
"""Texts and tokens, one of the texts with a hole for the content."""


def fill(slots: Slots, content: str = "") -> list[Part]:
    """The parts with `content` in the hole, in order; empty texts are left out."""
    filled = [
        slot.replace(CONTENT, content, 1) if isinstance(slot, str) else slot for slot in slots
    ]
    return [part for part in filled if part != ""]


def as_text(part: Part, bos_token: str = "", eos_token: str = "") -> str:
    """A part as it stands in a rendered text."""
    if isinstance(part, str):
        return part
    if isinstance(part, Token):
        return part.text
    return bos_token if part is Special.BOS else eos_token


@dataclasses.dataclass(frozen=True)
class Template:
    """The texts around the turns of a conversation, and what ends an answer.

    Slots left empty take their usual form: an answer is its content and EOS (content alone with
    `efficient_eos`), a function call reads like an answer, an observation like a question.
    """

    name: str  # how users call it
    user: Slots = (CONTENT,)  # around a question, the header of the answer included
    assistant: Slots = ()  # around an answer
    system: Slots = (CONTENT,)  # around the system text, of which the tools are the end
    function: Slots = ()  # around the text of function calls
    observation: Slots = ()  # around what tools answered, the header of the next answer included
    prefix: Slots = ()  # before everything
    default_system: str = ""  # the system text of a conversation that has none
    stop_words: tuple[str, ...] = ()
    """Texts of the tokens that end an answer. With `replace_eos` the first becomes the tokenizer's
    EOS."""
    tool_format: str = "default"  # a name of `TOOL_FORMATS`
    tool_call_words: tuple[str, str] = TOOL_CALL_WORDS
    """What surrounds the calls in a function message that also holds text."""
    thought_words: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    """What opens and what closes a thought."""
    empty_thought: str = ""  # an answer's thought that says nothing; both words when left empty
    plain_opening: str = ""
    """What an answer begins with that shows no thought, not even an empty one."""
    turn_end: str = ""
    """What ends an answer that is followed by another turn, at the start of that turn."""
    is_reasoning: bool = False  # whether thoughts are handled as `luthier.templates.thinking` says
    is_system_in_user: bool = False
    """Whether the system text stands inside the first question (Llama 2)."""
    trims_lone_tools: bool = False
    """Whether tools without a system text before them lose their first newlines."""
    efficient_eos: bool = False
    """Whether answers carry no EOS and the data side sets it between turns."""
    replace_eos: bool = False  # whether the first stop word becomes EOS
    replace_chat_template: bool = False
    """Whether a chat template of the tokenizer is always replaced."""
    enable_thinking: bool | None = True  # see `luthier.templates.thinking`
    preserve_thinking: bool = False  # see `luthier.templates.thinking`

    def __post_init__(self) -> None:
        usual: Slots = (CONTENT,) if self.efficient_eos else (CONTENT, Special.EOS)
        derived = {
            "assistant": self.assistant or usual,
            "function": self.function or self.assistant or usual,
            "observation": self.observation or self.user,
            "empty_thought": self.empty_thought or "".join(self.thought_words),
        }
        for field, value in derived.items():
            object.__setattr__(self, field, value)
        for slots in (self.user, self.assistant, self.system, self.function, self.observation):
            assert any(CONTENT in slot for slot in slots if isinstance(slot, str)), (
                f"{self.name}: {slots} has no place for the content"
            )
        assert self.stop_words or not self.replace_eos, f"{self.name}: no stop word to become EOS"

    @property
    def tools(self) -> ToolFormat:
        """The tool format by its name."""
        return TOOL_FORMATS.get(self.tool_format)

    @property
    def content_words(self) -> tuple[str, ...]:
        """What surrounds thoughts and calls in the contents of answers."""
        words = (*self.thought_words, *self.tool_call_words, *COMMON_WORDS)
        return tuple(dict.fromkeys(word.strip() for word in words))

    @cached_property
    def thinking(self) -> Thinking | None:
        """The policy for thoughts; None when they are text like any other."""
        if not self.is_reasoning:
            return None
        return Thinking(
            self.thought_words, self.empty_thought, self.enable_thinking, self.preserve_thinking
        )

    @property
    def takes_text_beside_calls(self) -> bool:
        """Whether calls are found behind the text of an answer."""
        return self.tools.takes_text

    @property
    def around_calls(self) -> tuple[str, str]:
        """What surrounds the calls behind an answer's text: their markers, or a line's end."""
        return self._call_marks or (self.tools.after_text, "")

    @property
    def _call_marks(self) -> tuple[str, str] | None:
        marked = next(slot for slot in self.function if isinstance(slot, str) and CONTENT in slot)
        before, _, after = marked.partition(CONTENT)
        is_marked = before.strip() and self.function != self.assistant
        return (before, after) if is_marked else None

    def turns(self, conversation: Conversation, *, is_history_masked: bool = False) -> list[Turn]:
        """Each question with its answer, for training.

        Args:
            conversation: questions and answers in turn, an answer last.
            is_history_masked: whether only the last answer is learned (`mask_history`).

        Raises:
            TemplateError: if the conversation ends with a question, or its tools or calls cannot
                be read.
        """
        messages = self._read(conversation.messages)
        if not messages or len(messages) % 2:
            raise TemplateError(
                f"a conversation to learn from ends with an answer; this one has "
                f"{len(messages)} messages."
            )
        thinking = self.thinking
        if thinking is not None:
            messages = thinking.as_trained(messages, is_history_masked=is_history_masked)
        rendered = self._render(messages, conversation.system, conversation.tools)
        last = len(messages) - 2
        turns = []
        for start in range(0, len(messages), 2):
            question, answer = rendered[start], rendered[start + 1]
            if is_history_masked and not self.preserve_thinking and start != last:
                answer = self._open_plainly(messages[start + 1], answer)
            else:
                question, answer = self._place_empty_thought(messages[start + 1], question, answer)
            is_learned = start == last or not is_history_masked
            turns.append(Turn(_pieces(question), _pieces(answer, is_learned)))
        return turns

    def turn(self, conversation: Conversation, answer: Message) -> Turn:
        """All that stands before one answer, and the answer, as generation shows them."""
        *before, answer = self._read((*conversation.messages, answer))
        if self.thinking is not None:
            before = [*self.thinking.as_prompted(before)]
            answer = self.thinking.as_answered(answer)
        *asked, answered = self._render([*before, answer], conversation.system, conversation.tools)
        prompt = [
            part
            for message, parts in zip(before, asked, strict=True)
            for part in self._open_plainly(message, parts)
        ]
        prompt, learned = self._place_empty_thought(answer, prompt, answered)
        return Turn(_pieces(prompt), _pieces(learned, is_learned=True))

    def prompt(
        self, conversation: Conversation, answer: Message | None = None
    ) -> tuple[Piece, ...]:
        """What stands before an answer.

        An `answer` that is known to follow matters only with `enable_thinking` None, where it
        decides on the empty thought.
        """
        return self.turn(conversation, answer or Message("assistant", "")).prompt

    def written_calls(self, calls: Sequence[FunctionCall]) -> str:
        """The text of an answer that only calls tools, without what ends it."""
        before, after = self._call_marks or ("", "")
        return before + self.tools.render_calls(calls) + after

    def fingerprint(self) -> str:
        """Text that changes with every field, and with the code that renders them."""
        rendered = [
            self.turns(probe, is_history_masked=is_masked)
            for probe in _PROBES
            for is_masked in (False, True)
        ]
        digest = hashlib.sha256(repr((self, rendered)).encode()).hexdigest()
        return f"{self.name}-{digest[:32]}"

    def _read(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, what was said beside calls told from the calls."""
        read = []
        for message in messages:
            if message.role == "function":
                message = split_calls(message, self.thought_words, self.tool_call_words)
                said = message.said
                if said and not self.is_reasoning:  # else it is shaped with the other thoughts
                    said = shape_thought(said, self.thought_words, self.empty_thought)
                    message = dataclasses.replace(message, said=said)
            read.append(message)
        return tuple(read)

    def _render(
        self, messages: Sequence[Message], system: str | None, tools: str | None
    ) -> list[list[Part]]:
        """The parts of each message; those of the first begin with prefix and system."""
        text = system or self.default_system
        described = self.tools.describe(tools) if tools else ""
        text += described if text or not self.trims_lone_tools else described.lstrip("\n")
        fused = ""
        opening = fill(self.prefix)
        if text and self.is_system_in_user:
            if messages[0].role != "user":
                raise TemplateError(
                    f"template {self.name!r} puts the system text and the tools into the first "
                    "question, but the conversation begins with a message of role "
                    f"{messages[0].role!r}.\n"
                    "  Let it begin with a user's message, or leave out system and tools."
                )
            fused = "".join(part for part in fill(self.system, text) if isinstance(part, str))
        elif text:
            opening += fill(self.system, text)
        rendered = [[*opening, *self._render_message(messages[0], fused)]]
        for position, message in enumerate(messages[1:], 1):
            ending: list[Part] = [self.turn_end] if self.turn_end and not position % 2 else []
            rendered.append(ending + self._render_message(message))
        return rendered

    def _render_message(self, message: Message, before: str = "") -> list[Part]:
        if message.role == "user":
            return fill(self.user, before + message.content)
        if message.role == "assistant":
            return fill(self.assistant, message.content)
        if message.role == "observation":
            return fill(self.observation, message.content)
        said, calls = message.said, self.tools.render_calls(read_calls(message))
        text = split_thought(said, self.thought_words)[1]
        if text and not text.isspace():
            before, after = self.around_calls
            return fill(self.assistant, said + before + calls + after)
        return fill(self.function, said.removesuffix(text) + calls)

    def _place_empty_thought(
        self, answer: Message, prompt: list[Part], shown: list[Part]
    ) -> tuple[list[Part], list[Part]]:
        """A prompt and its answer with the empty thought that belongs to one of them."""
        if self.thinking is None or self.thinking.is_in(spoken(answer)):
            return prompt, shown
        if self.enable_thinking:
            return prompt, [self.empty_thought, *shown]
        return [*prompt, self.empty_thought], shown

    def _open_plainly(self, message: Message, shown: list[Part]) -> list[Part]:
        """An answer that gets no empty thought."""
        is_plain = message.role in ("assistant", "function") and self.plain_opening
        if not is_plain or (self.thinking and self.thinking.is_in(spoken(message))):
            return shown
        return [self.plain_opening, *shown]


TEMPLATES: Registry[Template] = Registry("template", "luthier.templates.families")

_SLOTS = ("user", "assistant", "system", "function", "observation", "prefix")
_NAMED = re.compile(r"\{\{(bos|eos|token:.*?)\}\}")


class Family:
    """Fields of `Template` that several have in common; each is a row of a table.

    Slots are written as one text, in which `{{bos}}` and `{{eos}}` stand for the tokenizer's own
    tokens and `{{token:...}}` for the one of that text.
    """

    def __init__(self, **fields: Any) -> None:
        self.fields: dict[str, Any] = {
            name: _read_slots(value) if name in _SLOTS and isinstance(value, str) else value
            for name, value in fields.items()
        }

    def but(self, **changes: Any) -> Family:
        """The same with some fields changed."""
        family = Family(**changes)
        family.fields = self.fields | family.fields
        return family

    def register(self, *names: str, **changes: Any) -> None:
        """Files a template under every name given, with some fields of its own."""
        TEMPLATES.register(*names)(Template(names[0], **self.but(**changes).fields))


PLAIN = Family()


def _read_slots(text: str) -> Slots:
    named: dict[str, Part] = {"bos": Special.BOS, "eos": Special.EOS}
    parts: list[Part] = [*_NAMED.split(text)]
    for at in range(1, len(parts), 2):
        name = str(parts[at])
        parts[at] = named[name] if name in named else Token(name.removeprefix("token:"))
    return tuple(part for part in parts if part != "")


def _pieces(parts: Iterable[Part], is_learned: bool = False) -> tuple[Piece, ...]:
    return tuple(Piece(part, is_learned) for part in parts)


_TOOLS = (
    '[{"name": "find", "description": "Finds.", "parameters": {"type": "object", "properties": '
    '{"text": {"type": "string", "enum": ["a", "b"]}, "many": {"type": "array", "items": '
    '{"type": "integer"}}}, "required": ["text"]}}]'
)
_ASKED, _ANSWERED = Message("user", "question"), Message("assistant", "answer")
_CALL = '{"name": "find", "arguments": {"text": "a", "many": [1]}}'
_FOUND = Message("observation", "found")
_THOUGHT = Message("assistant", "<think>\nthought\n</think>\n\nanswer")
_BARE_THOUGHT = Message("assistant", "<think>thought</think>answer")
_TOLD = Message("function", '{"name": "find", "arguments": {}}', said="thought</think>text")
_PROBES = (
    Conversation((_ASKED, _ANSWERED, _ASKED, _ANSWERED)),
    Conversation(
        (_ASKED, Message("function", _CALL), _FOUND, _THOUGHT), system="system", tools=_TOOLS
    ),
    Conversation((_ASKED, _BARE_THOUGHT, _ASKED, _TOLD, _FOUND, _ANSWERED), tools="[]"),
)
"""Conversations whose rendering belongs to a template's fingerprint."""
