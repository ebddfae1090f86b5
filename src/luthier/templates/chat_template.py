"""A tokenizer's own chat template, read by checked prefixes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from luthier.errors import TemplateError
from luthier.records import BEHIND, Conversation, Message, Piece, Turn
from luthier.templates.template import Template
from luthier.templates.thinking import COMMON_WORDS, split_thought, spoken
from luthier.templates.tool_format import (
    TOOL_CALL_WORDS,
    FunctionCall,
    dump,
    parse_tools,
    read_calls,
    split_calls,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ChatMessage: TypeAlias = dict[str, Any]

_MEND = (
    "\n  Name a template instead (template: qwen3, llama3, ...): it writes every part of a row, "
    "and every turn in one way."
)
_ROLES = {"observation": "tool", "function": "assistant"}


def as_chat(
    conversation: Conversation,
    thought_words: tuple[str, str] = COMMON_WORDS,
    tool_call_words: tuple[str, str] = TOOL_CALL_WORDS,
    thought_key: str | None = None,
) -> list[ChatMessage]:
    """The system text and the messages, roles and tool calls named as `transformers` names them.

    `thought_key` is where a message's thought stands on its own; None leaves it in the text.
    """
    shown = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for message in conversation.messages:
        if message.role == "function":
            message = split_calls(message, thought_words, tool_call_words)
        role = _ROLES.get(message.role, message.role)
        chat: ChatMessage = {"role": role, "content": spoken(message)}
        if message.role == "function":
            chat["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in read_calls(message)
            ]
        if thought_key and role == "assistant":
            thought, text = split_thought(chat["content"], thought_words)
            chat |= {thought_key: thought, "content": text} if thought else {}
        shown.append(chat)
    return shown


def as_chat_tools(tools: str | None) -> list[dict[str, Any]] | None:
    """The tool descriptions for `apply_chat_template`; None when there are none."""
    return parse_tools(tools) if tools else None


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    tools: Sequence[dict[str, Any]] | None = None,
    *,
    is_prompt: bool = False,
    **variables: Any,
) -> str:
    """The text that the tokenizer's chat template gives, or a TemplateError where it refuses.

    With `is_prompt` an answer's header is asked for at the end.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tools=None if tools is None else list(tools),
            tokenize=False,
            add_generation_prompt=is_prompt,
            **variables,
        )
    except Exception as error:  # a template is a program, and can fail in any way
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(
            f"the tokenizer's chat template refuses a conversation of the roles {roles}: {error}"
            f"{_MEND}"
        ) from error
    return str(text)


def first_difference(ours: str, theirs: str, names: tuple[str, str] = ("ours", "theirs")) -> str:
    """Where two texts part, with a few letters around, as two lines."""
    pairs = zip(ours, theirs, strict=False)
    start = next(
        (at for at, (mine, other) in enumerate(pairs) if mine != other), min(len(ours), len(theirs))
    )
    width = max(map(len, names))
    lines = (
        f"    {name:<{width}}: {text[max(0, start - 20) : start + 40]!r}"
        for name, text in zip(names, (ours, theirs), strict=True)
    )
    return f"character {start + 1}:\n" + "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Renders with the chat template that came with the tokenizer.

    A turn's pieces are found by rendering the conversation up to the question with the header of
    the answer, and up to the answer: each text must begin the next one and the whole. Where it
    does not, training would show other texts than generation, and an error says where they part.
    """

    tokenizer: PreTrainedTokenizerBase = dataclasses.field(repr=False)  # with a chat template
    name: str = "the tokenizer's chat template"  # how the run calls it
    default_system: str = ""  # the system text of a conversation that has none
    enable_thinking: bool | None = None  # given to the chat template under this name unless None
    preserve_thinking: bool = False  # given to the chat template under this name when true
    stop_words: tuple[str, ...] = ()
    """The texts of tokens, other than EOS, with which the chat template ends an answer; found by
    rendering one when not given."""
    efficient_eos: bool = False  # never; the chat template writes what ends an answer
    takes_text_beside_calls: bool = True
    """Always; where a chat template leaves it out, that is an error."""
    content_words: tuple[str, ...] = (*COMMON_WORDS, *TOOL_CALL_WORDS)
    """What surrounds thoughts and calls in the contents of answers."""
    thought_words: tuple[str, str] = COMMON_WORDS
    """What surrounds a thought, as the chat template writes one where it does."""
    _opens_after_answers: bool = dataclasses.field(default=False, init=False, repr=False)
    _thought_key: str | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Tries where the chat template looks for thoughts, and what it sets behind an answer."""
        tokenizer = self.tokenizer
        question = {"role": "user", "content": "the-question"}
        answer = {"role": "assistant", "content": "the-answer"}
        for key in ("reasoning_content", "reasoning", "thinking"):
            try:
                shown = render_chat(tokenizer, [question, answer | {key: "the-thought"}])
            except TemplateError:
                continue
            if "the-thought" in shown:
                object.__setattr__(self, "_thought_key", key)
                before, _, after = shown.rpartition("the-thought")
                around = (before.split()[-1:], after.partition("the-answer")[0].split()[:1])
                if all(around):
                    words_found = (around[0][0], around[1][0])
                    object.__setattr__(self, "thought_words", words_found)
                break
        try:
            answered = render_chat(tokenizer, [question, answer])
            after = answered.rpartition("the-answer")[2]
            if not self.stop_words:
                begun = after.lstrip()
                words = [word for word in tokenizer.all_special_tokens if begun.startswith(word)]
                longest = max(words, key=len, default="")
                is_stop = longest and longest != tokenizer.eos_token
                object.__setattr__(self, "stop_words", (longest,) if is_stop else ())
            asked = render_chat(tokenizer, [question])
            opens = (
                after != ""
                and after == asked.rpartition("the-question")[2]
                and asked == render_chat(tokenizer, [question], is_prompt=True)
                and not render_chat(tokenizer, [question, answer, question]).startswith(answered)
            )
            object.__setattr__(self, "_opens_after_answers", opens)
        except TemplateError:
            pass  # the first row will say it

    def turns(self, conversation: Conversation, *, is_history_masked: bool = False) -> list[Turn]:
        """Each question with its answer, for training.

        Args:
            conversation: questions and answers in turn, an answer last.
            is_history_masked: whether only the last answer is learned. Then a chat template that
                shows earlier turns otherwise than it showed them while they were last is no
                error: all before the last answer is one prompt.

        Raises:
            TemplateError: if the rendering is not prefix-stable, or drops a content or the tools.
        """
        count = len(conversation.messages)
        if not count or count % 2:
            raise TemplateError(
                f"a conversation to learn from ends with an answer; this one has {count} messages."
            )
        whole = self._render(conversation, count)
        self._check_contents(conversation, whole)
        turns: list[Turn] = []
        start = 0
        for question in range(0, count, 2):
            is_last = question == count - 2
            prompt = self._render(conversation, question + 1, is_prompt=True)
            answered = whole if is_last else self._render(conversation, question + 2)
            is_stable = answered.startswith(prompt) and whole.startswith(answered)
            if is_history_masked and not is_stable and not is_last:
                turns, start = [], 0
                continue
            _check_prompt(prompt, answered, question // 2 + 1)
            if not whole.startswith(answered):
                raise TemplateError(
                    f"the tokenizer's chat template renders turn {question // 2 + 1} otherwise "
                    "once turns follow it. They part at "
                    f"{first_difference(answered, whole, ('alone', 'followed'))}{_MEND}"
                    "\n  Or set mask_history: true, to learn only the last turn."
                )
            is_learned = is_last or not is_history_masked
            if is_learned:
                answer = conversation.messages[question + 1]
                shown = whole[len(prompt) : len(answered)]
                _check_shown(answer, shown, question // 2 + 1, is_learned=True)
            asked = _piece(whole, start, len(prompt))
            learned = _piece(whole, len(prompt), len(answered), is_learned)
            turns.append(Turn((asked,), (learned,)))
            start = len(answered)
        return turns

    def turn(self, conversation: Conversation, answer: Message) -> Turn:
        """All that stands before one answer, and the answer, as generation shows them."""
        full = dataclasses.replace(conversation, messages=(*conversation.messages, answer))
        prompt = self._render(conversation, len(conversation.messages), is_prompt=True)
        whole = self._render(full, len(full.messages))
        self._check_contents(full, whole)
        turn = len(full.messages) // 2
        _check_prompt(prompt, whole, turn)
        _check_shown(answer, whole[len(prompt) :], turn, is_learned=True)
        return Turn((Piece(prompt),), (_piece(whole, len(prompt), len(whole), True),))

    def prompt(
        self, conversation: Conversation, answer: Message | None = None
    ) -> tuple[Piece, ...]:
        """What generation reads, or what stands before `answer`."""
        if answer is not None:
            return self.turn(conversation, answer).prompt
        return (Piece(self._render(conversation, len(conversation.messages), is_prompt=True)),)

    def written_calls(self, calls: Sequence[FunctionCall]) -> str:
        """The text of an answer that only calls tools, without what ends it.

        Raises:
            TemplateError: if the chat template refuses it, or shows the question otherwise then.
        """
        names = dict.fromkeys(call.name for call in calls)
        described = [{"name": name, "description": name, "parameters": {}} for name in names]
        content = dump([{"name": call.name, "arguments": call.arguments} for call in calls])
        messages = (Message("user", "the-question"), Message("function", content))
        tools = dump([{"type": "function", "function": each} for each in described])
        asked = Conversation(messages, tools=tools)
        prompt, whole = self._render(asked, 1, is_prompt=True), self._render(asked, 2)
        _check_prompt(prompt, whole, 1)
        text = whole[len(prompt) :]
        for word in (*self.stop_words, self.tokenizer.eos_token):
            text = text.partition(word)[0] if word else text
        return text

    def fingerprint(self) -> str:
        """Text that changes with the chat template and with what it is given."""
        given = (
            self.tokenizer.chat_template,
            self.tokenizer.bos_token,
            self.tokenizer.eos_token,
            self.default_system,
            self.enable_thinking,
            self.preserve_thinking,
        )
        return f"chat-{hashlib.sha256(repr(given).encode()).hexdigest()[:32]}"

    def _render(self, conversation: Conversation, count: int, *, is_prompt: bool = False) -> str:
        shown = dataclasses.replace(
            conversation,
            messages=conversation.messages[:count],
            system=conversation.system or self.default_system or None,
        )
        variables: dict[str, Any] = {}
        if self.enable_thinking is not None:
            variables["enable_thinking"] = self.enable_thinking
        if self.preserve_thinking:
            variables["preserve_thinking"] = True
        tools = as_chat_tools(conversation.tools)
        messages = as_chat(shown, thought_key=self._thought_key)
        return render_chat(
            self.tokenizer, messages, tools or None, is_prompt=is_prompt, **variables
        )

    def _check_contents(self, conversation: Conversation, whole: str) -> None:
        if self._opens_after_answers:
            raise TemplateError(
                "the tokenizer's chat template opens another answer after every answer, whatever "
                "add_generation_prompt says, so its last answer cannot be told from what follows."
                + _MEND
            )
        for number, message in enumerate(conversation.messages):
            _check_shown(message, whole, number // 2 + 1)
        if conversation.system and conversation.system.strip() not in whole:
            raise TemplateError(f"the tokenizer's chat template leaves out the system text.{_MEND}")
        if as_chat_tools(conversation.tools):
            without = dataclasses.replace(conversation, tools=None)
            if self._render(without, len(without.messages)) == whole:
                raise TemplateError(f"the tokenizer's chat template leaves out the tools.{_MEND}")


def _piece(whole: str, start: int, end: int, is_learned: bool = False) -> Piece:
    return Piece(whole[start:end], is_learned, behind=whole[max(start - BEHIND, 0) : start])


def _check_shown(message: Message, shown: str, turn: int, *, is_learned: bool = False) -> None:
    """Refuses a message of which something is not written; a thought only has to be learned."""
    names = {"user": "the question", "observation": "the tools' reply"}
    parts: list[tuple[str, Any]]
    if message.role in names:
        parts = [(names[message.role], message.content)]
    else:
        if message.role == "function":
            message = split_calls(message, COMMON_WORDS, TOOL_CALL_WORDS)
        thought, text = split_thought(spoken(message), COMMON_WORDS)
        parts = [("the thought of the answer", thought or "")] if is_learned else []
        parts.append(("the text of the answer", text))
        if message.role == "function":
            parts += [("a call", {call.name: call.arguments}) for call in read_calls(message)]
    for name, value in parts:
        if not _is_shown(value, shown):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            raise TemplateError(
                f"the tokenizer's chat template leaves out {name} of turn {turn}: "
                f"{text.strip()[:60]!r}.{_MEND}"
            )


def _is_shown(value: Any, shown: str) -> bool:
    """Whether a text, or all keys and values of an object, stand somewhere, as JSON or bare."""
    if isinstance(value, Mapping):
        return all(_is_shown(one, shown) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return all(_is_shown(one, shown) for one in value)
    text = value.strip() if isinstance(value, str) else str(value)
    if text in shown:
        return True
    value = text if isinstance(value, str) else value
    written = (json.dumps(value, ensure_ascii=is_ascii) for is_ascii in (False, True))
    return any((one[1:-1] if isinstance(value, str) else one) in shown for one in written)


def _check_prompt(prompt: str, answered: str, turn: int) -> None:
    if not answered.startswith(prompt):
        raise TemplateError(
            f"the tokenizer's chat template renders the prompt of turn {turn} otherwise once it "
            "is answered. They part at "
            + first_difference(prompt, answered, ("prompt", "answered"))
            + _MEND
        )


Renders: TypeAlias = Template | ChatTemplate
"""What renders conversations: a named template, or the tokenizer's own."""
