"""words that name data files among others -> the words of a configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from luthier.arguments.files import is_config
from luthier.arguments.parse import words_alone
from luthier.arguments.record import fields

MOST_BYTES = 1 << 20
"""A configuration is not larger; a larger JSON file holds data."""

OTHER_DATA = ("eval_dataset=null", "val_size=0", "mix_strategy=concat", "interleave_probs=null")
"""What is said of other data sets when files stand in their place."""


def data_words(words: Sequence[str]) -> list[str]:
    """The same words, with files of data, and names of data sets, as the value of `dataset`.

    A JSON file is a configuration when it is one object with the name of an argument.
    """
    files = [word for word in words_alone(words) if not (is_config(word) and _is_config(word))]
    rest = list(words)
    for file in reversed(files):
        del rest[len(rest) - 1 - rest[::-1].index(file)]
    return [*rest, f"dataset={json.dumps(files)}", *OTHER_DATA] if files else rest


def _is_config(word: str) -> bool:
    file = Path(word).expanduser()
    if file.suffix.lower() != ".json" or not file.is_file() or file.stat().st_size > MOST_BYTES:
        return file.suffix.lower() != ".json" or not file.is_file()
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and any(name in values for name in fields())
