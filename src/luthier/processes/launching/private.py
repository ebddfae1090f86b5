"""Words with secrets, handed to the processes by the environment: all may read argument lists."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from luthier.secrecy import MASK, learn, masked_words

PRIVATE = "LUTHIER_PRIVATE_WORDS"
"""Where they are: a mapping from places in the command line to words."""


def kept_private(command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command with stars in the place of its secrets, and the variable that holds them.

    Args:
        command: the words after `luthier`.
    """
    shown = masked_words(command)
    words = {
        str(place): word
        for place, (word, other) in enumerate(zip(command[1:], shown[1:], strict=True))
        if word != other
    }
    return [command[0], *shown[1:]], {PRIVATE: json.dumps(words)} if words else {}


def told_in_private(words: Sequence[str]) -> list[str]:
    """The words after `luthier train`, those that were kept private in their places again.

    The variable is taken away, so that what this process starts does not inherit it.
    """
    told = json.loads(os.environ.pop(PRIVATE, "{}"))
    found = list(words)
    for place, word in told.items():
        if int(place) < len(found) and MASK in found[int(place)]:
            found[int(place)] = word
    learn("", list(told.values()))
    return found
