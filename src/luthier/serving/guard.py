"""Who may ask: token, Host and Origin, the size of a body; every refusal in OpenAI's form."""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from luthier.serving.admission import Doors, within
from luthier.serving.problems import Refused

SHORTEST_TOKEN = 16
"""Characters of a token with which others than this machine may be served."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Coroutine[Any, Any, Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Guard:
    """Lets requests through to the app behind it.

    A page in a browser may name any host that resolves to this machine (DNS rebinding), so `Host`
    must be one of ours, and an `Origin` must be that very host.
    """

    app: App
    doors: Doors
    token: str | None  # that clients send as `Authorization: Bearer TOKEN`; None asks for none
    hosts: frozenset[str] | None  # names in `Host`; None takes any
    routes: frozenset[str]  # that are counted by their name
    root_path: str = ""  # under which a proxy offers the server; it may leave it in paths or not

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Checks a request, then hands it on with a body of bounded size and time."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets
        begun: list[int] = []
        scope["root_path"] = self.root_path

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message["status"])
            await send(message)

        try:
            try:
                self._check(scope)
                body = await self._read(scope, receive)
            except Refused as problem:
                problem.headers |= {"Connection": "close"}  # the body may be on its way
                await reply(counted, problem)
                return
            try:
                if scope["method"] == "POST":
                    self.doors.check()  # a form takes longer to read than it does to refuse it
            except Refused as problem:
                await reply(counted, problem)
                return
            await self.app(scope, _once(body, receive), counted)
        finally:
            path = scope["path"].removeprefix(self.root_path)
            route = path if path in self.routes else "other"
            self.doors.replies[route, begun[0] if begun else 499] += 1

    def _check(self, scope: Message) -> None:
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        host = hosts[0] if len(hosts) == 1 else ""
        name = _host_name(host)
        if not name or (self.hosts is not None and name not in self.hosts):
            raise Refused(
                f"the Host {host[:80]!r} is none of this server's; allowed_hosts names others",
                status=403,
                code="host_not_allowed",
            )
        for origin in headers.get("origin", []):
            if urlsplit(origin).netloc.lower() != host.lower():
                raise Refused(
                    f"pages of {origin[:80]!r} may not ask here",
                    status=403,
                    code="origin_not_allowed",
                )
        if self.token is None:
            return
        given = headers.get("authorization", [])
        kind, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        is_right = hmac.compare_digest(token.strip().encode(), self.token.encode())
        if kind.lower() != "bearer" or not is_right:
            raise Refused(
                "a token is asked for: send `Authorization: Bearer TOKEN`"
                if not given
                else "the token is not the right one",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Message, receive: Receive) -> bytes:
        limits = self.doors.limits
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(int(value) > limits.max_body for value in lengths if value.isdigit()):
            raise _too_large(limits.max_body)
        body, until = bytearray(), time.monotonic() + limits.body_s
        while True:
            try:
                message = await within(until - time.monotonic(), receive())
            except TimeoutError:
                raise Refused(
                    f"the body took more than {limits.body_s:.0f} s", status=408
                ) from None
            body += message.get("body", b"")
            if len(body) > limits.max_body:
                raise _too_large(limits.max_body)
            if not message.get("more_body"):
                return bytes(body)


async def reply(send: Send, problem: Refused) -> None:
    """Sends a refusal."""
    content = json.dumps(problem.body()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
    } | problem.headers
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})


def _too_large(most: int) -> Refused:
    return Refused(
        f"the body has more than {most / 2**20:.0f} MB", status=413, code="body_too_large"
    )


def _once(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what comes from the client: that it has gone."""
    waiting = [body]

    async def receive_again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return receive_again


def _host_name(host: str) -> str:
    """`[::1]:8000` -> `::1`; empty for what is no host."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
