"""What travels from a row of data to the model: plain, frozen, without behaviour of its own.

row -> (formats) Conversation | Pair | Feedback | Text -> (templates) Turns of Pieces
    -> (encode) Example -> (tree) Segments
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

IGNORE_INDEX = -100
"""The label of a position from which nothing is learned, as in `transformers` and `torch`."""

BEHIND = 32
"""Characters of what precedes that `Piece.behind` holds; more would not change a token."""

Role: TypeAlias = Literal["user", "assistant", "observation", "function"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record stands: a file (or a hub name) and the line or row in it, counted from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    """`function` is an assistant's turn that calls tools, its content the JSON of the calls (an
    object or a list of objects with `name` and `arguments`, a thought before it allowed);
    `observation` is what the tools answered."""
    content: str  # the text
    weight: float | None = None
    """How much the loss of its tokens counts, whatever the run's options say of such messages: 0
    masks an answer, and a question is learned above 0. None where the row says nothing: answers
    count once."""
    said: str = ""
    """Of a `function` message, what the assistant said before it called: thought and text."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, from the user's first to the answer that is learned."""

    messages: tuple[Message, ...]
    """Strictly alternating, user or observation first, assistant or function second."""
    system: str | None = None
    """The system prompt; None when the row has none (the template's default applies)."""
    tools: str | None = None  # a JSON list of tool descriptions as text; None when there are none
    origin: Origin | None = None
    weight: float | None = None  # how much the loss of the whole row counts; None for once


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a better and a worse answer (stages rm and dpo)."""

    prompt: Conversation  # ends with a question
    chosen: Message
    rejected: Message
    origin: Origin | None = None
    margin: float | None = None  # by how much the chosen answer is better, where that is known


@dataclass(frozen=True, slots=True)
class Feedback:
    """A conversation whose last answer is marked as wanted or unwanted (stage kto)."""

    conversation: Conversation
    is_desirable: bool
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text without turns (stage pt)."""

    content: str
    origin: Origin | None = None


Record: TypeAlias = Conversation | Pair | Feedback | Text


class Special(Enum):
    """Tokens that a template names by their part in the tokenizer, not by their text."""

    BOS = "bos_token"
    EOS = "eos_token"


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the vocabulary named by its exact text, such as `[gMASK]`."""

    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch that is tokenised on its own."""

    content: str | Special | Token
    """Text, or a token. Special tokens written out in text are found by the tokenizer."""
    is_learned: bool = False  # whether the loss is taken on its tokens
    behind: str = ""
    """The end of the text that this one goes on. Some tokenizers (SentencePiece) read the beginning
    of a text otherwise than the same letters further on. Empty at a beginning."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with everything before it that is not yet rendered, and its answer."""

    prompt: tuple[Piece, ...]
    answer: tuple[Piece, ...]


class Segment(NamedTuple):
    """A stretch of a token tree without a branch inside: tokens start to end, depth first."""

    start: int  # position of its first token in the micro-batch
    end: int  # one behind its last token
    parent: int  # index of the segment that it continues; -1 for the beginning of a sequence
