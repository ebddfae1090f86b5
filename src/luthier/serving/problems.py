"""What goes wrong with a request, in the form in which OpenAI says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.errors import LuthierError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
"""HTTP status -> the type of an error."""


class Refused(LuthierError):
    """A request that gets no answer.

    Args:
        message: what was found, what was expected, what to do.
        status: of HTTP.
        param: the field that is meant, as `messages[0].content`.
        code: what a program may ask for.
        headers: of the reply.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """What the client reads."""
        return {
            "error": {
                "message": str(self),
                "type": TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def of_validation(problems: Sequence[Any], given: Any) -> Refused:
    """One of pydantic's problems with a body, by the field's path in what was given.

    Of a value that may be of several types it is the one that lies deepest, so nearest to them.
    """

    def depth(one: Any) -> tuple[int, bool]:
        path = _path(one["loc"], given, one["type"])
        # what is missing may belong to another type than the one that is meant
        return path.count(".") + path.count("["), one["type"] != "missing"

    problem = max(problems, key=depth)
    param = _path(problem["loc"], given, problem["type"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "json_invalid":
        return Refused(f"the body is not JSON: {problem.get('ctx', {}).get('error', message)}")
    if problem["type"] == "extra_forbidden":
        message = "this field is not known here, and nothing is ignored: leave it out"
    context = problem.get("ctx", {})
    return Refused(
        f"{param}: {message}" if param else message,
        param=param or context.get("param") or None,
        code="unsupported_parameter" if problem["type"] == "extra_forbidden" else "invalid_value",
    )


def _path(places: Sequence[str | int], given: Any, kind: str) -> str:
    """`('body', 'messages', 0, 'user', 'content')` -> `messages[0].content`."""
    path, value = "", given
    rest = [place for place in places if place != "body"]
    for number, place in enumerate(rest):
        is_last = number == len(rest) - 1
        if isinstance(place, int):
            path += f"[{place}]"
            in_range = isinstance(value, list) and place < len(value)
            value = value[place] if in_range else None
        elif isinstance(value, dict) and (
            place in value or (is_last and kind in ("missing", "extra_forbidden"))
        ):
            path += f".{place}" if path else place
            value = value.get(place)
    return path
