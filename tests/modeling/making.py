"""arguments for tests of this room, without the parser"""

from __future__ import annotations

from typing import Any

from luthier.arguments.record import SECTIONS, Arguments


def make_arguments(**values: Any) -> Arguments:
    """Every name goes to the section that declares it; the rest keeps its default."""
    parts = {
        section: kind(**{name: values[name] for name in values if name in kind.model_fields})
        for section, kind in SECTIONS.items()
    }
    known = {name for kind in SECTIONS.values() for name in kind.model_fields}
    assert values.keys() <= known, values.keys() - known
    return Arguments(**parts, origins=dict.fromkeys(values, "test"))
