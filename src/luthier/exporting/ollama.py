"""A Modelfile for Ollama: the trained template in Go's language, every stop, the whole context.

Sources: docs/modelfile.md and docs/template.md of Ollama for the values that a template is given
(`.System`, `.Messages`, `.Tools`, `.Think`), and Go's text/template for its language. Ollama finds
out from literal text how thoughts and calls are marked, so texts stand as they are, without
trimming, and the template is one long line but for its own line ends.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from luthier import console
from luthier.errors import TemplateError
from luthier.exporting.gguf_tokenizer import adds_bos
from luthier.records import Special
from luthier.templates.chat_template import Renders
from luthier.templates.fit import find_alike
from luthier.templates.template import CONTENT, Slots, Template, as_text
from luthier.templates.tool_format import FunctionCall, ToolFormat, dump

MODELFILE = "Modelfile"

_PROBES: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Does {name}.",
            "parameters": {
                "type": "object",
                "properties": {name: {"type": "string", "description": f"The {name}."}},
            },
        },
    }
    for name in ("alphatool", "betatool")
]


def write_modelfile(
    place: Path,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    stops: Sequence[str],
    context: int,
) -> Path:
    """Writes `Modelfile` into a folder.

    Args:
        place: the folder.
        template: of the conversations that were trained.
        tokenizer: fitted to it.
        source: the file or folder of the weights, seen from there.
        stops: texts of the tokens that end an answer.
        context: the most tokens that the model reads.
    """
    text = "\n".join(
        [
            "# ollama create NAME -f Modelfile",
            f"FROM {source}",
            f'TEMPLATE """{go_template(template, tokenizer)}"""',
            *(f'PARAMETER stop "{stop}"' for stop in stops),
            f"PARAMETER num_ctx {context}",
        ]
    )
    path = place / MODELFILE
    path.write_text(text + "\n", encoding="utf-8")
    return path


def find_template(template: Renders | None, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template of a run by its parts; of a tokenizer's own, a registered one that reads alike.

    `template` is None for a model of texts.

    Raises:
        TemplateError: if there is none.
    """
    if isinstance(template, Template):
        return template
    if template is None:
        raise TemplateError(
            "ollama: a model of texts has no template, and Ollama sends conversations. Leave it "
            "out; the GGUF file can be asked to go on with a text."
        )
    found = find_alike(tokenizer)
    if found is None:
        raise TemplateError(
            "ollama: the tokenizer's own chat template is a program that cannot be written in Go's "
            "language, and no template that is known here reads as it does. Name the nearest one "
            "(template: NAME), or leave ollama out."
        )
    console.info(f"ollama: TEMPLATE is that of {found.name!r}, which reads as the tokenizer's own")
    return found


def go_template(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """What Ollama renders a conversation with; it reads as the template's prompts do."""
    return _Writer(template, tokenizer).text()


class _Writer:
    """One template on its way into Go's language."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template = template
        self.bos, self.eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        self.adds_bos = adds_bos(tokenizer)
        self.tools = _describe(template.tools)
        self.calls = _write_calls(template.tools)
        if self.tools is None or self.calls is None:
            console.info(
                f"ollama: tools are not told: the format {template.tool_format!r} writes each "
                "parameter by itself, for which Go's language has no words"
            )
            self.tools = self.calls = None

    def text(self) -> str:
        """The whole template."""
        template = self.template
        default = f" {dump(template.default_system)}" if template.default_system else ""
        parts = ["{{ $system := " + (f"or .System{default}" if default else ".System") + " }}"]
        parts.append('{{ $first := true }}{{ $before := "" }}')
        if template.is_reasoning:
            shows, thinks = template.enable_thinking is not False, bool(template.enable_thinking)
            parts.append(
                f"{{{{ $shows := {dump(shows)} }}}}{{{{ $thinks := {dump(thinks)} }}}}"
                "{{ if .IsThinkSet }}{{ $shows = .Think }}{{ $thinks = .Think }}{{ end }}"
                "{{ $asked := 0 }}{{ range $i, $_ := .Messages }}"
                '{{ if eq .Role "user" }}{{ $asked = $i }}{{ end }}{{ end }}'
            )
        parts.append(self.fill(self.without_bos(template.prefix), ""))
        if not template.is_system_in_user:
            parts.append(f"{{{{ if {self.has_system()} }}}}{self.system()}{{{{ end }}}}")
        parts.append("{{ range $i, $_ := .Messages }}{{ $rest := slice $.Messages $i }}")
        parts.append("{{ $last := eq (len $rest) 1 }}")
        parts.append('{{ if eq .Role "user" }}' + self.user())
        parts.append('{{ else if eq .Role "assistant" }}' + self.assistant())
        parts.append('{{ else if eq .Role "tool" }}' + self.observation() + "{{ end }}")
        parts.append('{{ if ne .Role "system" }}{{ $first = false }}{{ end }}')
        parts.append("{{ $before = .Role }}{{ end }}")
        if template.is_reasoning:
            empty = _literal(template.empty_thought)
            parts.append(
                f'{{{{ if and (not $thinks) (ne $before "assistant") }}}}{empty}{{{{ end }}}}'
            )
        return "".join(parts)

    def without_bos(self, slots: Slots) -> Slots:
        """The first slots of a prompt, before which the tokenizer sets BOS by itself."""
        return slots[1:] if self.adds_bos and slots[:1] == (Special.BOS,) else slots

    def fill(self, slots: Slots, content: str) -> str:
        """Slots with Go's words in the hole."""
        before, after = self.halves(slots)
        return before + content + after

    def halves(self, slots: Slots) -> tuple[str, str]:
        """What stands before the hole, and behind it."""
        text = "".join(as_text(slot, self.bos, self.eos) for slot in slots)
        before, _, after = text.partition(CONTENT)
        return _literal(before), _literal(after)

    def has_system(self) -> str:
        """When a system text is written."""
        return "$system" if self.tools is None else "or $system $.Tools"

    def system(self) -> str:
        """The system text, of which the tools are the end."""
        tools = ""
        if self.tools is not None:
            told = self.tools
            if self.template.trims_lone_tools:
                told = f"{{{{ if $system }}}}{told}{{{{ else }}}}{told.lstrip()}{{{{ end }}}}"
            tools = f"{{{{ if $.Tools }}}}{told}{{{{ end }}}}"
        return self.fill(self.template.system, "{{ $system }}" + tools)

    def user(self) -> str:
        """A question, the header of its answer included."""
        slots, content = self.template.user, "{{ .Content }}"
        if self.template.is_system_in_user:
            wanted = f"and $first ({self.has_system()})"
            content = f"{{{{ if {wanted} }}}}{self.system()}{{{{ end }}}}{content}"
        if self.without_bos(slots) == slots:
            return self.fill(slots, content)
        bos = f"{{{{ if not $first }}}}{_literal(self.bos)}{{{{ end }}}}"
        return (bos if not self.template.prefix else _literal(self.bos)) + self.fill(
            slots[1:], content
        )

    def assistant(self) -> str:
        """An answer; the last one is open, as Ollama goes on with it."""
        template = self.template
        thought = ""
        if template.is_reasoning:
            opening, closing = map(_literal, template.thought_words)
            kept = "" if template.preserve_thinking else " (and $shows (gt $i $asked))"
            thought = f"{{{{ if and .Thinking{kept} }}}}{opening}{{{{ .Thinking }}}}{closing}"
            plain = _literal(template.plain_opening)
            thought += (f"{{{{ else }}}}{plain}" if plain else "") + "{{ end }}"
        end = _literal(template.turn_end)
        ahead = ""
        if not any(self.halves(slots)[0] for slots in (template.assistant, template.function)):
            # Ollama takes the first text below `.ToolCalls` for the mark of calls
            ahead, thought = thought, ""
        said = self.closed(template.assistant, thought + "{{ .Content }}", end)
        if self.calls is None:
            return ahead + said
        before, after = map(_literal, template.around_calls)
        beside = f"{thought}{{{{ .Content }}}}{before}{self.calls}{after}"
        both = self.closed(template.assistant, beside, end)
        alone = self.closed(template.function, thought + self.calls, end)
        return (
            f"{ahead}{{{{ if .ToolCalls }}}}{{{{ if .Content }}}}{both}{{{{ else }}}}{alone}"
            f"{{{{ end }}}}{{{{ else }}}}{said}{{{{ end }}}}"
        )

    def closed(self, slots: Slots, content: str, end: str) -> str:
        """Slots whose end is written when more follows."""
        before, after = self.halves(slots)
        closing = f"{{{{ if not $last }}}}{after}{end}{{{{ end }}}}" if after + end else ""
        return before + content + closing

    def observation(self) -> str:
        """What tools answered; those that follow each other are one."""
        before, after = self.halves(self.template.observation)
        between = "\n"
        if "<tool_response>\n" in before:
            between = "\n</tool_response>\n<tool_response>\n"
        return (
            f'{{{{ if eq $before "tool" }}}}{between}{{{{ else }}}}{before}{{{{ end }}}}'
            '{{ .Content }}{{ $next := "" }}'
            "{{ if not $last }}{{ $next = (index $rest 1).Role }}{{ end }}"
            f'{{{{ if ne $next "tool" }}}}{after}{{{{ end }}}}'
        )


def _describe(tools: ToolFormat) -> str | None:
    """What is said of `$.Tools`; None where tools are not written as JSON."""

    def locate(text: str, tool: dict[str, Any]) -> tuple[int, int, str] | None:
        for value, words in ((tool, "{{ json . }}"), (tool["function"], "{{ json .Function }}")):
            found = _find_json(text, value)
            if found is not None:
                name = tool["function"]["name"]
                start = min(at for at in (text.find(name), found[0]) if at >= 0)
                said = _literal(text[start : found[0]]).replace(name, "{{ .Function.Name }}")
                return start, found[1], said + words
        return None

    texts = [tools.describe(dump(_PROBES[:count])) for count in (1, 2)]
    return _listed("$.Tools", texts, [locate(text, tool) for text, tool in _pairs(texts)])


def _write_calls(tools: ToolFormat) -> str | None:
    """What is said of `.ToolCalls`; None where arguments are not written as JSON."""
    probes = [
        FunctionCall(each["function"]["name"], {"text": number})
        for number, each in enumerate(_PROBES)
    ]

    def locate(text: str, call: FunctionCall) -> tuple[int, int, str] | None:
        found = _find_json(text, call.arguments)
        start = text.find(call.name)
        if found is None or not 0 <= start < found[0]:
            return None
        between = _literal(text[start + len(call.name) : found[0]])
        return start, found[1], "{{ .Function.Name }}" + between + "{{ json .Function.Arguments }}"

    counts = (1,) if tools.one_call else (1, 2)
    texts = [tools.render_calls(probes[:count]) for count in counts]
    places = [
        locate(text, probes[number])
        for text, number in ((texts[0], 0), *((text, at) for text in texts[1:] for at in (0, 1)))
    ]
    return _listed(".ToolCalls", texts, places)


def _pairs(texts: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    return [(texts[0], _PROBES[0]), (texts[1], _PROBES[0]), (texts[1], _PROBES[1])]


def _listed(value: str, texts: list[str], places: list[tuple[int, int, str] | None]) -> str | None:
    """Go's words for a list: learned from the text of one thing, and of two."""
    if any(place is None for place in places):
        return None
    one, *two = (place for place in places if place is not None)
    item = one[2]
    head, tail = texts[0][: one[0]], texts[0][one[1] :]
    if not two:
        return f"{_literal(head)}{{{{ range {value} }}}}{item}{{{{ end }}}}{_literal(tail)}"
    first, second = two
    middle = texts[1][first[1] : second[0]]
    ends = [(head, texts[1][: first[0]]), (tail, texts[1][second[1] :])]
    opening, closing = (
        _literal(alone)
        if alone == several
        else f"{{{{ if gt (len {value}) 1 }}}}{_literal(several)}"
        f"{{{{ else }}}}{_literal(alone)}{{{{ end }}}}"
        for alone, several in ends
    )
    return (
        f"{opening}{{{{ range $n, $_ := {value} }}}}{{{{ if $n }}}}{_literal(middle)}{{{{ end }}}}"
        f"{item}{{{{ end }}}}{closing}"
    )


def _find_json(text: str, value: Any) -> tuple[int, int] | None:
    """Where a JSON text of a value begins and ends, whatever its spaces."""
    at = text.find("{")
    while at >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(text, at)
        except json.JSONDecodeError:
            found = None
        if found == value:
            return at, end
        at = text.find("{", at + 1)
    return None


def _literal(text: str) -> str:
    """A text that Go's templates and a Modelfile's quotes leave as it is."""
    text = text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')
    return text[:-1] + '{{ "{" }}' if text.endswith("{") else text
