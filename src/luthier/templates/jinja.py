"""The chat template, in jinja, that is saved with a tokenizer and renders what was trained."""

from __future__ import annotations

import re

from luthier.records import Special, Token
from luthier.templates.template import CONTENT, Slots, Template
from luthier.templates.thinking import COMMON_WORDS
from luthier.templates.tool_format import dump as quote

_TEXT_OF = """
{%- macro text_of(content) -%}
{%- if content is string %}{{- content }}
{%- elif content %}
{%- for part in content %}{{- part["text"] if part["type"] == "text" else "" }}{%- endfor %}
{%- endif %}
{%- endmacro %}
"""

_SYSTEM = """
{%- if messages and messages[0]["role"] in ["system", "developer"] %}
{%- set system = text_of(messages[0]["content"]) or DEFAULT_SYSTEM %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = DEFAULT_SYSTEM %}
{%- set turns = messages %}
{%- endif %}
{%- set has_tools = tools is defined and tools is not none %}
{%- set tools_text %}
{%- if HAS_TOOLS %}TOOLS{%- endif %}
{%- endset %}
{%- set has_system = system or tools_text %}
{%- set system_text = system ~ LISTED %}
"""

_TURNS = """
{%- set waiting = namespace(observation="") %}
{%- for message in turns %}
{%- set role = message["role"] %}
{%- set content = text_of(message["content"]) %}
{%- if role == "user" %}
FUSE
{{- USER }}
{%- elif role == "assistant" %}
{%- set thought = message["reasoning_content"] or message["reasoning"] or message["thinking"] %}
{%- if thought is string and thought %}
{%- set content = "<think>\\n" ~ thought.strip("\\n") ~ "\\n</think>\\n\\n" ~ content %}
{%- endif %}
THOUGHTS
{%- if message["tool_calls"] %}
{%- set listed = namespace(calls=[]) %}
{%- for call in message["tool_calls"] %}
{%- set listed.calls = listed.calls + [call["function"] or call] %}
{%- endfor %}
{%- set calls = listed.calls %}
{%- set calls_text %}CALLS{%- endset %}
SHAPE
{%- set text = part_of(content, "text") %}
{%- if text.strip() %}
{%- set content = content ~ BEFORE_CALLS ~ calls_text ~ AFTER_CALLS %}
{{- ASSISTANT }}
{%- else %}
{%- set content = content[:content | length - text | length] ~ calls_text %}
{{- FUNCTION }}
{%- endif %}
{%- else %}
{{- ASSISTANT }}
{%- endif %}
END_TURN
{%- elif role in ["tool", "observation", "ipython"] %}
{%- set waiting.observation = waiting.observation ~ content %}
{%- if not loop.last and loop.nextitem["role"] == role %}
{%- set waiting.observation = waiting.observation ~ SEPARATOR %}
{%- else %}
{%- set content = waiting.observation %}
{%- set waiting.observation = "" %}
{{- OBSERVATION }}
{%- endif %}
{%- else %}
{{- raise_exception("a message has the unknown role " ~ role) }}
{%- endif %}
{%- endfor %}
"""

_FUSE = """
{%- if loop.first and has_system %}{%- set content = SYSTEM ~ content %}{%- endif %}
"""

_NEEDS_QUESTION = """
{%- if has_system and turns and turns[0]["role"] != "user" %}
{{- raise_exception("the system text stands in the first question, but there is none") }}
{%- endif %}
"""

_PART_OF = """
{%- macro part_of(content, part) -%}
{%- set said = namespace(thought="", text=content) %}
{%- for opening, closing in WORDS %}
{%- set before = said.text.split(closing, 1)[0] %}
{%- if not said.thought and closing in said.text
       and (opening not in before or not before.split(opening, 1)[0].strip()) %}
{%- set thought = before.split(opening, 1)[-1] %}
{%- set thought = thought.lstrip("\\n") if thought[:1] == "\\n" else thought.lstrip() %}
{%- set thought = thought.rstrip("\\n") if thought[-1:] == "\\n" else thought.rstrip() %}
{%- set said.thought = OPENING ~ thought ~ CLOSING if thought else EMPTY %}
{%- set text = said.text.split(closing, 1)[1] %}
{%- set said.text = text.lstrip("\\n") if text[:1] == "\\n" else text.lstrip() %}
{%- endif %}
{%- endfor %}
{{- said.text if part == "text" else said.thought ~ said.text }}
{%- endmacro %}
"""

_WITHOUT_THOUGHT = """
{%- macro without_thought(content) -%}
{%- set state = namespace(kept="", opened="") %}
{%- for part in content.split(OPENING) %}
{%- if loop.first %}
{%- set state.kept = part %}
{%- elif CLOSING in part %}
{%- set state.kept = state.kept ~ part.split(CLOSING, 1)[1] %}
{%- set state.opened = "" %}
{%- else %}
{%- set state.opened = state.opened ~ OPENING ~ part %}
{%- endif %}
{%- endfor %}
{{- (state.kept ~ state.opened).lstrip("\\n") }}
{%- endmacro %}
"""

_POLICY = """
{%- set thinks = enable_thinking if enable_thinking is defined else ENABLED %}
{%- set keeps_thoughts = preserve_thinking if preserve_thinking is defined else PRESERVED %}
{%- set is_prompt = messages and messages[-1]["role"] != "assistant" %}
{%- set asked = namespace(last=0) %}
{%- for message in turns %}
{%- if message["role"] == "user" %}{%- set asked.last = loop.index0 %}{%- endif %}
{%- endfor %}
"""

_THOUGHTS = """
{%- if is_prompt and keeps_thoughts
       or thinks is not false and (not is_prompt or loop.index0 > asked.last) %}
{%- set content = part_of(content, "all") %}
{%- else %}
{%- set content = without_thought(part_of(content, "text")) %}
{%- endif %}
{%- if OPENING_WORD not in content and CLOSING_WORD not in content %}
{{- PLAIN_OPENING if is_prompt else EMPTY }}
{%- endif %}
"""

_SHAPE = '{%- set content = part_of(content, "all") %}'
_COMMON = "[" + ", ".join(map(quote, COMMON_WORDS)) + "]"

_OPEN_PROMPT = """
{%- if add_generation_prompt and is_prompt and not thinks %}{{- EMPTY }}{%- endif %}
"""


def write_chat_template(template: Template) -> str:
    """A jinja template for `tokenizer.chat_template`.

    A conversation that ends with an answer reads as `template.turns` trains it, one that ends with
    a question or an observation as `template.prompt`; the answer's header is part of a question
    in either case. Messages of role `tool` that follow each other are joined to one observation.
    `bos_token` and `eos_token` are the tokenizer's. For reasoning templates `enable_thinking` and
    `preserve_thinking` may be given to `apply_chat_template`; see `luthier.templates.thinking`.
    """
    opening, closing = template.thought_words
    is_tagged = any(
        "<tool_response>\n" in slot for slot in template.observation if isinstance(slot, str)
    )
    values = {
        "OPENING_WORD": quote(opening.strip()),
        "CLOSING_WORD": quote(closing.strip()),
        "OPENING": quote(opening),
        "CLOSING": quote(closing),
        "EMPTY": quote(template.empty_thought),
        "ENABLED": {True: "true", False: "false", None: "none"}[template.enable_thinking],
        "PRESERVED": "true" if template.preserve_thinking else "false",
        "DEFAULT_SYSTEM": quote(template.default_system),
        "SYSTEM": _expression(template.system, "system_text"),
        "USER": _expression(template.user),
        "ASSISTANT": _expression(template.assistant),
        "FUNCTION": _expression(template.function),
        "OBSERVATION": _expression(template.observation),
        "SEPARATOR": quote("\n</tool_response>\n<tool_response>\n" if is_tagged else "\n"),
        "HAS_TOOLS": "has_tools" if template.tools.describes_none else "has_tools and tools",
        "WORDS": f"[[{quote(opening.strip())}, {quote(closing.strip())}], {_COMMON}]",
        "PLAIN_OPENING": quote(template.plain_opening),
        "BEFORE_CALLS": quote(template.around_calls[0]),
        "AFTER_CALLS": quote(template.around_calls[1]),
        "TOOLS": template.tools.tools_jinja,
        "LISTED": "tools_text"
        if not template.trims_lone_tools
        else '(tools_text if system else tools_text.lstrip("\\n"))',
        "CALLS": template.tools.calls_jinja,
    }
    parts = [_TEXT_OF, _put(_PART_OF, values), _put(_SYSTEM, values)]
    if template.is_reasoning:
        parts += [_put(_WITHOUT_THOUGHT, values), _put(_POLICY, values)]
    if template.prefix:
        parts.append("{{- " + _expression(template.prefix) + " }}\n")
    if template.is_system_in_user:
        parts.append(_NEEDS_QUESTION)
    else:
        parts.append("{%- if has_system %}{{- " + values["SYSTEM"] + " }}{%- endif %}\n")
    values["FUSE"] = _put(_FUSE, values).strip() if template.is_system_in_user else ""
    values["THOUGHTS"] = _put(_THOUGHTS, values).strip() if template.is_reasoning else ""
    values["SHAPE"] = "" if template.is_reasoning else _SHAPE
    end = f"{{%- if not loop.last %}}{{{{- {quote(template.turn_end)} }}}}{{%- endif %}}"
    values["END_TURN"] = end if template.turn_end else ""
    parts.append(_put(_TURNS, values))
    if template.is_reasoning:
        parts.append(_put(_OPEN_PROMPT, values))
    lines = (line for part in parts for line in part.split("\n") if line)
    return "\n".join(lines)


def _expression(slots: Slots, content: str = "content") -> str:
    """A jinja expression that gives the text of `slots`, another one's text in the hole."""
    terms: list[str] = []
    for slot in slots:
        if isinstance(slot, Special):
            terms.append(slot.value)
        elif isinstance(slot, Token):
            terms.append(quote(slot.text))
        else:
            before, hole, after = slot.partition(CONTENT)
            terms += [quote(before)] if before else []
            terms += [content] if hole else []
            terms += [quote(after)] if after else []
    return " ~ ".join(terms) or '""'


def _put(text: str, values: dict[str, str]) -> str:
    """Fills the names in capitals, each once read and never again in what was filled in."""
    pattern = re.compile(r"\b(" + "|".join(values) + r")\b")
    return pattern.sub(lambda found: values[found.group(1)], text)
