"""The server's process: where it listens, how long headers may take, how it ends."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serving.guard import App

BACKLOG = 2048

SWITCH_S = 0.0005
"""How long the thread that computes answers may keep the one that speaks to clients from its turn;
Python's own 5 ms would come on top of each step of a request."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        OSError: if the port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError:
        listening.close()
        raise
    listening.set_inheritable(True)
    return listening


def make_server(app: App, *, header_s: float) -> uvicorn.Server:
    """A server for an app; connections that send no whole request head in time are closed."""

    class Protocol(H11Protocol):
        """Closes connections that are slow with their headers."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head_alarm = self.loop.call_later(header_s, self._close_slow)

        def _close_slow(self) -> None:
            # between two requests the library's own timer closes a connection
            cycle: object = self.cycle
            if cycle is None and not self.transport.is_closing():
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_alarm.cancel()
            super().connection_lost(exc)

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return uvicorn.Server(config)


def serve(app: App, listening: socket.socket, *, header_s: float) -> None:
    """Serves until the process is asked to end."""
    sys.setswitchinterval(SWITCH_S)
    make_server(app, header_s=header_s).run(sockets=[listening])
