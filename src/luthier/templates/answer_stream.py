"""An answer as it comes -> its thought, its text, and the calls of tools in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from luthier.errors import TemplateError
from luthier.templates.chat_template import Renders
from luthier.templates.template import Template
from luthier.templates.thinking import COMMON_WORDS
from luthier.templates.tool_format import (
    TOOL_CALL_WORDS,
    TOOL_FORMATS,
    FunctionCall,
    ToolFormat,
    dump,
    load,
)


@dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """One more call, its arguments to come."""

    index: int  # counted from 0
    name: str  # the tool's


@dataclass(frozen=True, slots=True)
class CallGoesOn:
    """More of a call's arguments."""

    index: int
    arguments: str  # a stretch of JSON text


Part: TypeAlias = Thought | Said | CallBegins | CallGoesOn


@dataclass(frozen=True)
class CallForm:
    """How a model writes its calls, read off one that its template has written."""

    tool_format: ToolFormat  # reads them
    before_name: str  # opens a call, markers included
    after_name: str
    """What stands between name and arguments; the arguments' own names and values come next."""
    after_arguments: str  # closes a call, markers included
    has_json: bool  # whether the arguments are a JSON object
    is_json: bool  # whether the whole call is one of name and arguments, in this order

    @property
    def marker(self) -> str:
        """The text that tells a call from an answer's text; empty where a call stands alone."""
        return re.split(r"\s|\[?\{", self.before_name.strip(), maxsplit=1)[0]


_NAME, _ARGUMENTS = "probe_name", {"probe_key": "probe_value"}
_PROBE = FunctionCall(_NAME, _ARGUMENTS)


@lru_cache(maxsize=32)
def call_form(template: Renders) -> CallForm | None:
    """How calls are written to this template; None where it cannot write or read one."""
    try:
        written = template.written_calls([_PROBE])
    except TemplateError:
        return None
    names = [template.tool_format] if isinstance(template, Template) else TOOL_FORMATS.names()
    before, found, rest = written.partition(_NAME)
    for tool_format in map(TOOL_FORMATS.get, names if found else ()):
        if tool_format.extract_calls(written) == [_PROBE]:
            shown = dump(_ARGUMENTS)
            after_name, is_whole, after = rest.partition(shown)
            is_json = bool(is_whole and _HEAD.search(written))
            if not is_whole:
                after_name, after = rest.partition("probe_key")[0], ""
            return CallForm(tool_format, before, after_name, after, bool(is_whole), is_json)
    return None


def extract_calls(template: Renders, answer: str) -> tuple[str, list[FunctionCall]]:
    """The text of a whole answer without its thought, and the calls in it."""
    stream = AnswerStream(template, reads_calls=True)
    parts = [*stream.push(answer), *stream.end()]
    said = "".join(part.text for part in parts if isinstance(part, Said))
    calls = []
    for begun in parts:
        if isinstance(begun, CallBegins):
            pieces = (part for part in parts if isinstance(part, CallGoesOn))
            arguments = "".join(one.arguments for one in pieces if one.index == begun.index)
            calls.append(FunctionCall(begun.name, load(arguments)))
    return said, calls


_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*')


class AnswerStream:
    """Takes an answer's text piece by piece and says what became sure with each.

    A thought stands at the answer's start between the template's thought words, or is open from the
    prompt on. What may yet be the beginning of a tag or a call is held back. Calls that are JSON
    objects come as they are written, name first; others once the next one begins or the answer
    ends. The space around thoughts and before calls is nobody's.

    Args:
        template: whose words are looked for.
        reads_calls: whether calls of tools are; otherwise they are text.
        tool_names: of the tools that may be called; where calls begin by nothing but a name they
            are known by it.
        is_thinking: whether the prompt ends within a thought, see `opens_thought`.
    """

    def __init__(
        self,
        template: Renders,
        *,
        reads_calls: bool = False,
        tool_names: Sequence[str] = (),
        is_thinking: bool = False,
    ) -> None:
        words = [(opening.strip(), closing.strip()) for opening, closing in _words(template)]
        self._openings = [opening for opening, _ in words]
        self._closings = [closing for _, closing in words]
        self._form = call_form(template) if reads_calls else None
        self._markers: list[str] = []
        self._calls_first = False  # whether calls stand only at the beginning
        if self._form:
            marker = self._form.marker
            self._calls_first = not marker
            bare = ["{", "["] if self._form.is_json else [f"{name}\n" for name in tool_names]
            self._markers = [marker] if marker else bare
        self._held = ""
        self._state = self._in_thought if is_thinking else self._at_start
        self._trims = is_thinking  # whether the space that comes next is nobody's
        self._num_calls = 0
        self._at = 0  # in the text of calls, what was read
        self._value: _Value | None = None  # the arguments that are being written
        self._gap = ""  # the space before the calls

    @property
    def is_thinking(self) -> bool:
        """Whether the answer is within a thought."""
        return self._state == self._in_thought

    def push(self, text: str) -> list[Part]:
        """What became sure with more text."""
        self._held += text
        return list(self._read(is_end=False))

    def end(self) -> list[Part]:
        """What is left when no more comes."""
        return list(self._read(is_end=True))

    def _read(self, *, is_end: bool) -> Iterator[Part]:
        state = None
        while state != self._state:
            state = self._state
            yield from state(is_end)

    def _at_start(self, is_end: bool) -> Iterator[Part]:
        begun = self._held.lstrip()
        for opening in self._openings:
            if begun.startswith(opening):
                self._held, self._trims = begun[len(opening) :], True
                self._state = self._in_thought
                return
        if is_end or not any(opening.startswith(begun) for opening in self._openings):
            self._state = self._in_text
        yield from ()

    def _in_thought(self, is_end: bool) -> Iterator[Part]:
        yield from self._trim()
        places = [
            (self._held.index(closing), closing)
            for closing in self._closings
            if closing in self._held
        ]
        if places:
            end, closing = min(places)
            thought = self._held[:end].rstrip()
            self._held, self._trims = self._held[end + len(closing) :], True
            self._state = self._in_text
        else:
            thought = self._take_sure(self._closings, is_end)
        if thought:
            yield Thought(thought)

    def _in_text(self, is_end: bool) -> Iterator[Part]:
        yield from self._trim()
        if not self._markers:
            text, self._held = self._held, ""
            if text:
                yield Said(text)
            return
        if self._calls_first:
            begun = self._held.lstrip()
            if any(begun.startswith(marker) for marker in self._markers):
                self._begin_calls(len(self._held) - len(begun))
            elif is_end or not any(marker.startswith(begun) for marker in self._markers):
                self._markers = []  # it is an answer in words
                yield from self._in_text(is_end)
            return
        (marker,) = self._markers
        start = self._held.find(marker)
        if start >= 0:
            text = self._held[:start].rstrip()
            self._begin_calls(start, len(text))
        else:
            text = self._take_sure([marker], is_end)
        if text:
            yield Said(text)

    def _begin_calls(self, start: int, end_of_text: int = 0) -> None:
        self._gap = self._held[end_of_text:start]
        self._held = self._held[start:]
        self._state = self._in_calls

    def _in_calls(self, is_end: bool) -> Iterator[Part]:
        assert self._form is not None
        if self._form.is_json:
            yield from self._read_objects()
        elif not is_end:
            found = self._form.tool_format.extract_calls(self._held)
            yield from self._tell(found[self._num_calls : -1])
        if not is_end or self._value:
            return
        found = self._form.tool_format.extract_calls(self._held)
        if len(found) > self._num_calls:
            yield from self._tell(found[self._num_calls :])
        elif not self._num_calls:
            yield Said(self._gap + self._held)
        elif self._form.is_json and (rest := self._held[self._next_call() :].strip()):
            yield Said(rest)
        self._held, self._at, self._markers = "", 0, []
        self._state = self._in_text

    def _read_objects(self) -> Iterator[Part]:
        """Calls that are JSON objects, as far as they are written."""
        while True:
            if self._value is None:
                head = _HEAD.match(self._held, self._next_call())
                if head is None:
                    return
                name = load(head[1])
                self._at, self._value = head.end(), _Value(name)
            value = self._value
            piece, self._at = value.read(self._held, self._at)
            if piece:
                if not value.is_told:
                    value.is_told = True
                    self._num_calls += 1
                    yield CallBegins(self._num_calls - 1, value.name)
                yield CallGoesOn(self._num_calls - 1, piece)
            if not value.is_whole:
                return
            self._value = None

    def _next_call(self) -> int:
        """Where a further call would begin, behind what closes the last one."""
        assert self._form is not None
        words = {self._form.marker, *self._form.after_arguments.split(), *TOOL_CALL_WORDS}
        listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True) if word)
        behind = re.compile(rf"(?:\s|[,;\]}}]|\[(?=\s*\{{)|{listed})*")
        found = behind.match(self._held, self._at)
        return found.end() if found else self._at

    def _tell(self, calls: Sequence[FunctionCall]) -> Iterator[Part]:
        for call in calls:
            arguments = call.arguments
            text = arguments if isinstance(arguments, str) else dump(arguments)
            yield CallBegins(self._num_calls, call.name)
            yield CallGoesOn(self._num_calls, text)
            self._num_calls += 1

    def _trim(self) -> Iterator[Part]:
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        yield from ()

    def _take_sure(self, words: Sequence[str], is_end: bool) -> str:
        """The held text but for what may begin one of the words, and the space before that."""
        if is_end:
            sure, self._held = self._held, ""
            return sure
        keep = max(
            (
                length
                for word in words
                for length in range(1, min(len(word), len(self._held) + 1))
                if self._held.endswith(word[:length])
            ),
            default=0,
        )
        sure = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(sure) :]
        return sure


def opens_thought(template: Renders, prompt: str) -> bool:
    """Whether a prompt ends with a thought's opening word, so that the answer goes on in it."""
    ending = prompt.rstrip()
    return any(ending.endswith(opening.strip()) for opening, _ in _words(template))


def _words(template: Renders) -> list[tuple[str, str]]:
    return list(dict.fromkeys((template.thought_words, COMMON_WORDS)))


class _Value:
    """The JSON value of a call's arguments, found character by character."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_told = self.is_whole = False
        self._depth = 0
        self._in_text = self._is_escaped = False

    def read(self, text: str, at: int) -> tuple[str, int]:
        """What of the value stands from `at` on, and where it ends."""
        if not self._depth:
            at += len(text) - at - len(text[at:].lstrip())
        if at < len(text) and not self._depth and text[at] not in "{[":
            return self._read_scalar(text, at)
        for place in range(at, len(text)):
            letter = text[place]
            if self._in_text:
                if self._is_escaped:
                    self._is_escaped = False
                elif letter == "\\":
                    self._is_escaped = True
                elif letter == '"':
                    self._in_text = False
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_whole = True
                    return text[at : place + 1], place + 1
        return text[at:], len(text)

    def _read_scalar(self, text: str, at: int) -> tuple[str, int]:
        """A text, which may hold the arguments as JSON, or another value, once it has ended."""
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except json.JSONDecodeError:
            return "", at
        if end == len(text) and not isinstance(value, str):
            return "", at  # a number may go on
        self.is_whole = True
        is_object = isinstance(value, str) and isinstance(load(value), dict)
        return (value if is_object else dump(value)), end
