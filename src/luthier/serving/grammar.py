"""What an answer is held to: a JSON schema, or a call of a tool; by llguidance."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.errors import MissingPackage
from luthier.optional import need
from luthier.serving.engine import Engine
from luthier.serving.forms import Tool
from luthier.serving.problems import Refused
from luthier.templates.answer_stream import CallForm, call_form
from luthier.templates.tool_format import dump

SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""How JSON is written: as training writes calls, and without space that never ends."""


@dataclass(frozen=True)
class Grammar:
    """Holds answers of one request to a grammar; each answer reads it from the beginning."""

    engine: Engine
    lark: str  # in llguidance's dialect
    asked: str  # the field that asks for it

    @classmethod
    def of(
        cls,
        engine: Engine,
        *,
        tools: Sequence[Tool],
        forced: Sequence[Tool],
        schema: Mapping[str, Any] | None,
        is_thinking: bool = False,
    ) -> Grammar | None:
        """The grammar of what a client asks for; None where the answer is free.

        Args:
            engine: whose template writes the calls.
            tools: that may be called instead of answering by the schema.
            forced: tools of which one must be called.
            schema: of the text, a JSON schema.
            is_thinking: whether the prompt ends within a thought, which is free.

        Raises:
            Refused: if there is no grammar for it, or it is too large.
        """
        callable_tools = forced or (tools if schema is not None else ())
        if schema is None and not forced:
            return None
        asked = "tool_choice" if forced else "response_format"
        form = call_form(engine.template) if callable_tools else None
        if callable_tools and (form is None or not form.has_json):
            raise Refused(
                f"{asked}: template {engine.template.name!r} writes its calls in a form that an "
                "answer cannot be held to; leave it out, or the tools",
                param=asked,
            )
        choices = [_call(engine, form, tool) for tool in callable_tools if form]
        if schema is not None and not forced:
            choices.append(_json(schema))
        rules = ["start: thought answer" if is_thinking else "start: answer"]
        rules += [f"answer: {' | '.join(f'choice{at}' for at in range(len(choices)))}"]
        rules += [f"choice{at}: {choice}" for at, choice in enumerate(choices)]
        if is_thinking:
            closing = engine.template.thought_words[1].strip()
            rules.append(f"thought: FREE {_literal(engine, closing)}\nFREE[lazy]: /(?s:.*)/")
        grammar = cls(engine, "\n".join(rules), asked)
        try:
            matcher = grammar._matcher()
        except MissingPackage as problem:
            raise Refused(f"{asked}: {problem}", param=asked) from problem
        if matcher.is_error():
            said = str(matcher.get_error()).partition("\n")[0]
            raise Refused(f"{asked}: an answer cannot be held to it: {said[:300]}", param=asked)
        return grammar

    def allowed(self) -> Callable[[Sequence[int]], Tensor]:
        """What `Request.allowed` asks of one answer."""
        matcher, num_read = self._matcher(), 0

        def allowed(new: Sequence[int]) -> Tensor:
            nonlocal num_read
            if num_read < len(new):
                matcher.consume_tokens([*new[num_read:]])
                num_read = len(new)
            bits = numpy.frombuffer(matcher.compute_bitmask(), dtype=numpy.uint8)
            if matcher.is_error():
                said = str(matcher.get_error()).partition("\n")[0]
                raise Refused(f"{self.asked}: {said[:300]}", param=self.asked)
            return torch.from_numpy(numpy.unpackbits(bits, bitorder="little").astype(bool))

        return allowed

    def _matcher(self) -> Any:
        llguidance = need("llguidance", "holding answers to a grammar")
        grammar = llguidance.LLMatcher.grammar_from_lark(self.lark)
        return llguidance.LLMatcher(_tokens(self.engine), grammar, log_level=0)


@lru_cache(maxsize=8)
def _tokens_of(tokenizer: Any, stop_token_ids: tuple[int, ...]) -> Any:
    hf = need("llguidance.hf", "holding answers to a grammar")
    return hf.from_tokenizer(tokenizer, eos_token=list(stop_token_ids) or None)


def _tokens(engine: Engine) -> Any:
    return _tokens_of(engine.tokenizer, tuple(engine.stop_token_ids))


def _call(engine: Engine, form: CallForm, tool: Tool) -> str:
    before = form.before_name.lstrip()
    parts = [
        _literal(engine, before + tool.function.name + form.after_name),
        _json(tool.function.parameters or {"type": "object"}),
        _literal(engine, form.after_arguments.rstrip()),
    ]
    return " ".join(part for part in parts if part)


def _json(schema: Mapping[str, Any]) -> str:
    own = schema.get("x-guidance")
    given = {**schema, "x-guidance": SPACING | (own if isinstance(own, dict) else {})}
    return f"%json {dump(given)}"


def _literal(engine: Engine, text: str) -> str:
    """A text in the grammar; special tokens in it by their ids."""
    tokenizer = engine.tokenizer
    ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    names = "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True) if name)
    parts = re.split(f"({names})", text) if names else [text]
    return " ".join(f"<[{ids[part]}]>" if part in ids else dump(part) for part in parts if part)
