"""What clients may ask for, field by field; what is not done is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from luthier.templates.tool_format import dump

MOST_ANSWERS = 8
"""Answers to one request at once."""

MOST_SCORES = 1024
"""Conversations or texts of one request that are scored."""

MOST_STOPS = 4
"""Stop strings of one request, as with OpenAI."""


class Part(BaseModel):
    """A part of a request: unknown fields are refused, null is as if left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's that are not done -> values that ask for nothing and are fine."""

    @model_validator(mode="before")
    @classmethod
    def _take_what_is_done(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        taken = {}
        for name, value in given.items():
            if value is None:
                continue
            if name not in cls.not_done:
                taken[name] = value
            elif value not in cls.not_done[name]:
                fine = " or ".join(map(dump, cls.not_done[name]))
                raise PydanticCustomError(
                    "not_done",
                    "{field} is not done here, and nothing is ignored: leave it out{fine}",
                    {"field": name, "param": name, "fine": f", or give {fine}" if fine else ""},
                )
        return taken


class TextPart(Part):
    """A part of a message's content; only text is read, and nothing is fetched."""

    type: Literal["text", "input_text", "output_text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind not in ("text", "input_text", "output_text"):
            raise PydanticCustomError(
                "media", "a part of type {kind} is not read here; only text is", {"kind": kind[:40]}
            )
        return given

    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "logprobs": ([],),
    }


Content: TypeAlias = str | list[TextPart]


class System(Part):
    """What the model is told first."""

    role: Literal["system", "developer"]
    content: Content


class User(Part):
    """A question."""

    role: Literal["user"]
    content: Content


class CalledFunction(Part):
    """Name and arguments of a call."""

    name: str
    arguments: str


class Call(Part):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {"index": tuple(range(128))}


class Assistant(Part):
    """An earlier answer."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[Call] = []
    reasoning_content: str | None = None
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **dict.fromkeys(("refusal", "audio", "function_call", "name"), ()),
        "annotations": ([],),
    }


class ToolReply(Part):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage: TypeAlias = Annotated[
    System | User | Assistant | ToolReply, Field(discriminator="role")
]


class Function(Part):
    """A function that may be called."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(Part):
    """A tool; only functions are."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """The name of a function."""

    name: str


class ForcedTool(Part):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Part):
    """What else a stream tells."""

    include_usage: bool = False
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}


class Schema(Part):
    """A JSON schema by its name."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field(default={}, alias="schema")
    description: str | None = None
    strict: bool = False


class TextFormat(Part):
    """Free text."""

    type: Literal["text"]


class ObjectFormat(Part):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Part):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: Schema


ResponseFormat: TypeAlias = Annotated[
    TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")
]

Stop: TypeAlias = (
    Annotated[str, Field(min_length=1, max_length=256)]
    | Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=MOST_STOPS)
    ]
)
Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
Metadata: TypeAlias = Annotated[dict[str, str], Field(max_length=16)]


class Chosen(Part):
    """How tokens are chosen; a field that is left out is as the server was started."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None


class Sampled(Chosen):
    """What chat and plain completions have in common."""

    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] = 1
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias], Field(max_length=1024)
    ] = {}
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "not_a_stream",
                "stream_options: only a request with stream: true takes them",
                {"param": "stream_options"},
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatForm(Sampled):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | ForcedTool | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    metadata: Metadata | None = None
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **dict.fromkeys(
            "audio function_call functions prediction web_search_options moderation verbosity "
            "reasoning_effort user safety_identifier prompt_cache_key prompt_cache_options "
            "prompt_cache_retention".split(),
            (),
        ),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    @model_validator(mode="after")
    def _what_belongs_together(self) -> ChatForm:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        wrong = ""
        if len(limits) == 2:
            wrong = "max_tokens: max_completion_tokens says another number; keep that one"
        elif self.top_logprobs is not None and not self.logprobs:
            wrong = "top_logprobs: they are told only with logprobs: true"
        elif self.tool_choice not in (None, "none") and not self.tools:
            wrong = "tool_choice: there are no tools to choose from"
        elif isinstance(self.tool_choice, ForcedTool):
            names = [tool.function.name for tool in self.tools]
            if (name := self.tool_choice.function.name) not in names:
                wrong = f"tool_choice: no tool is called {name!r}; there are {', '.join(names)}"
        if wrong:
            raise PydanticCustomError(
                "not_together", "{wrong}", {"wrong": wrong, "param": wrong.partition(":")[0]}
            )
        return self


class CompletionForm(Sampled):
    """The body of `/v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_ANSWERS)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[int], Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_ANSWERS),
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **dict.fromkeys(("suffix", "user"), ()),
        "best_of": (1,),
        "echo": (False,),
    }


class ScoreForm(Part):
    """The body of `/v1/score`: conversations that end with an answer, or their whole texts."""

    model: str
    messages: (
        Annotated[list[str], Field(min_length=1, max_length=MOST_SCORES)]
        | Annotated[list[ChatMessage], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[ChatMessage], Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_SCORES),
        ]
    )
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    max_length: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _what_belongs_together(self) -> ScoreForm:
        is_text = isinstance(self.messages[0], str)
        wrong = ""
        if self.tools and is_text:
            wrong = "tools: texts are read as they are, so write the tools into them"
        elif self.max_length is not None and not is_text:
            wrong = "max_length: only texts are cut; shorten the conversations"
        if wrong:
            raise PydanticCustomError(
                "not_together", "{wrong}", {"wrong": wrong, "param": wrong.partition(":")[0]}
            )
        return self

    @property
    def conversations(self) -> list[list[ChatMessage]]:
        """The conversations; none of texts."""
        given: list[Any] = self.messages
        return [] if isinstance(given[0], str) else given if isinstance(given[0], list) else [given]


class TextOptions(Part):
    """The form of a response's text."""

    class FlatSchema(Schema):
        """JSON of a schema, its name beside its type."""

        type: Literal["json_schema"]

    format: Annotated[TextFormat | ObjectFormat | FlatSchema, Field(discriminator="type")] | None
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}


class FlatTool(Function):
    """A function that may be called, as `/v1/responses` has it."""

    type: Literal["function"]
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {"defer_loading": (False,)}


class FlatForcedTool(NamedFunction):
    """The one tool that is to be called."""

    type: Literal["function"]


class InputMessage(Part):
    """A message, or an earlier answer of the model."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {"phase": ()}


class InputCall(Part):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {"namespace": ()}


class InputReply(Part):
    """What a tool answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class ReasoningText(Part):
    """A stretch of thought."""

    type: Literal["reasoning_text"]
    text: str


class InputReasoning(Part):
    """What the model thought before an answer."""

    type: Literal["reasoning"]
    id: str | None = None
    content: list[ReasoningText] = []
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {"summary": ([],), "encrypted_content": ()}


def _kind_of_item(given: Any) -> Any:
    """Its `type`, which a message may leave out."""
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return str(kind or "message")


Item: TypeAlias = Annotated[
    Annotated[InputCall, Tag("function_call")]
    | Annotated[InputReply, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")]
    | Annotated[InputMessage, Tag("message")],
    Discriminator(_kind_of_item),
]


class ResponseForm(Chosen):
    """The body of `/v1/responses`."""

    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    store: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatForcedTool | None = None
    tools: Annotated[list[FlatTool], Field(max_length=128)] = []
    not_done: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **dict.fromkeys(
            "access_programs background_options context_management conversation image "
            "max_tool_calls moderation prompt prompt_cache_key prompt_cache_options "
            "prompt_cache_retention safety_identifier user".split(),
            (),
        ),
        "background": (False,),
        "include": ([],),
        "reasoning": ({},),
        "service_tier": ("auto", "default"),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }
