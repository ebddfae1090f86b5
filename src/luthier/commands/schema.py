"""`luthier schema`: the JSON schema of a configuration, or the reference page."""

from __future__ import annotations

from luthier.errors import ArgumentsError

SUMMARY = "print the JSON schema of a configuration file, or its reference (--markdown)"
USAGE = f"luthier schema [--markdown]\n\n{SUMMARY}"


def run(argv: list[str]) -> int:
    """Prints the schema."""
    wrong = [word for word in argv if word != "--markdown"]
    if wrong:
        raise ArgumentsError(
            [f"schema does not know {word!r}; it takes --markdown" for word in wrong]
        )
    from luthier.arguments.schema import reference_page, schema_text

    print(reference_page() if argv else schema_text(), end="" if argv else "\n")
    return 0
