"""How the API is served; these are words of `luthier api` alone."""

from __future__ import annotations

from typing import Literal

from luthier.arguments.knob import CommaList, Section, free


class ServingArguments(Section):
    """Knobs of the server."""

    host: str = free("127.0.0.1")
    """Where to listen. By default only programs of this machine reach the server; any other host
    needs a token."""
    port: int = free(8000, ge=0, le=65535)
    """Where to listen; 0 takes a free port. By default 8000."""
    api_key_file: str | None = free(None)
    """A file with the token that clients must send, 16 characters or more. By default the variable
    `API_KEY` holds it."""
    allowed_hosts: CommaList = free(())
    """Names by which clients may call the server, beside its own. By default none."""
    max_concurrent: int = free(16, ge=1, le=1024)
    """The most answers that are made at once; memory may allow fewer. By default 16."""
    max_waiting: int = free(32, ge=0, le=10_000)
    """The most requests that wait for a place; further ones are told to come back (429). By default
    32."""
    deadline: float = free(600.0, gt=0)
    """Seconds from a request to the end of its answer; then it is dropped. By default 600."""
    served_name: str | None = free(None)
    """The name by which clients ask for the first model. By default the folder's."""
    root_path: str = free("")
    """The path under which a proxy offers the server. By default none."""
    backend: Literal["luthier", "vllm", "sglang"] = free("luthier")
    """What answers. By default luthier; vllm and sglang are started as they are installed."""
    dry_run: bool = free(False)
    """Whether the command of another backend is only printed. By default it is run."""


VARIABLES = {
    "API_HOST": "host",
    "API_PORT": "port",
    "API_MODEL_NAME": "served_name",
    "MAX_CONCURRENT": "max_concurrent",
    "FASTAPI_ROOT_PATH": "root_path",
}
"""Variables of LLaMA-Factory's that say the same as a knob; words win over them."""
