"""Secrets, known by their names, by their values and by the form of URLs, starred out of texts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import quote, unquote

MASK = "********"

SHORTEST = 8
"""Characters of a value that is looked for wherever it stands; shorter ones stand in words that
are no secret, and are masked beside their names and in URLs only."""

_NAME = re.compile(
    r"(^|_)(token|secret|pass|(api|access|secret|private|account|auth|app)_?key|webhook_url"
    r"|credentials?|connection_string|key)$|password|passwd",
    re.I,
)

_PARAMETER = (
    r"[\w.%-]*(?:token|signature|credential|secret|password|passwd|api[-_]?key"
    r"|access[-_]?key(?:[-_]?id)?|auth|authorization)|sig|key|jwt|pwd"
)

_USER = re.compile(
    r"\b((?:https?|git\+https?)://)([^/\s?#\"'<>\\]+)@|\b([a-z][\w+.-]*://)([^/\s?#\"'<>\\@:]*:[^/\s?#\"'<>\\]*)@",
    re.I,
)
_QUERY = re.compile(rf"([?&;#](?:{_PARAMETER})=)([^&;\s\"'<>\\#]+)", re.I)
_FORMS = (
    re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic|token)\s+)[^\s\"',]+", re.I),
    re.compile(r"\b(hf_)[A-Za-z0-9]{8,}"),
    re.compile(r"\b(gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}"),
)

_known: set[str] = set()


@lru_cache(maxsize=4096)
def names_a_secret(name: str) -> bool:
    """Whether values of a setting or a variable of this name are never shown."""
    return _NAME.search(name) is not None


def learn(name: str, value: Any) -> None:
    """Remembers what is secret in a setting, so that `masked` finds it in any text.

    Its name tells whether the whole value is secret; passwords of URLs are, whatever it is called.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            learn(str(key), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            learn(name, inner)
    else:
        is_secret = names_a_secret(name)
        if hasattr(value, "get_secret_value"):
            is_secret, value = True, value.get_secret_value()
        if isinstance(value, str):
            _remember([value] if is_secret else _in_urls(value))


def masked(text: str) -> str:
    """The text with a row of stars for each secret.

    Masked are values that were learnt, those of environment variables with secret names, user and
    password of URLs, parameters of URLs that sign or log in, and tokens of a known form.
    """
    of_environment = (os.environ.get(name, "") for name in os.environ if names_a_secret(name))
    values = {*_known, *(value for value in of_environment if len(value) >= SHORTEST)}
    for value in sorted(values, key=len, reverse=True):
        if value in text:
            text = text.replace(value, MASK)
    if "://" in text:
        text = _USER.sub(lambda found: f"{found[1] or found[3]}{MASK}@", text)
    if "=" in text:
        text = _QUERY.sub(rf"\1{MASK}", text)
    for form in _FORMS:
        text = form.sub(rf"\1{MASK}", text)
    return text


def masked_throughout(value: Any) -> Any:
    """A value of JSON with every text in it masked, names in mappings too."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {
            masked(key) if isinstance(key, str) else key: masked_throughout(inner)
            for key, inner in value.items()
        }
    return [masked_throughout(one) for one in value] if isinstance(value, list | tuple) else value


def masked_words(words: Sequence[str]) -> list[str]:
    """The words of a command line, those with a secret masked: by its name, however short it is."""
    shown = []
    is_value = False
    for word in words:
        name, has_value, value = word.partition("=")
        names = names_a_secret(name.lstrip("-").replace("-", "_"))
        if is_value and not word.startswith("--"):
            shown.append(MASK)
        elif has_value and names and value:
            shown.append(f"{name}={MASK}")
        else:
            shown.append(masked(word))
        is_value = names and not has_value and word.startswith("--")
    return shown


def guard(*streams: TextIO | None) -> None:
    """From now on masks what is written to streams of text, tracebacks included."""
    for stream in streams:
        if stream is None or getattr(stream.write, "masks", False):
            continue
        try:
            stream.write = _masking(stream.write)  # type: ignore[method-assign]
        except AttributeError:
            continue  # a stream of somebody else's making


def _masking(write: Any) -> Any:
    def write_masked(text: str) -> int:
        write(masked(text))
        return len(text)

    write_masked.masks = True  # type: ignore[attr-defined]
    return write_masked


def _remember(values: Sequence[str] | Iterator[str]) -> None:
    for value in values:
        forms = (value, quote(value, safe=""), unquote(value))
        _known.update(form for form in forms if len(form) >= SHORTEST)


def _in_urls(text: str) -> Iterator[str]:
    for found in _USER.finditer(text):
        user = found[2] or found[4]
        yield user.partition(":")[2] or user
    for found in _QUERY.finditer(text):
        yield found[2]
