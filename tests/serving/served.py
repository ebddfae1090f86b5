"""a server of the API in a thread, with a tiny model behind it"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from luthier.arguments.generating import GeneratingArguments
from luthier.serving.admission import Limits
from luthier.serving.app import make_app
from luthier.serving.asking import Served
from luthier.serving.engine import Engine
from luthier.serving.server import listen, make_server
from luthier.templates.template import TEMPLATES
from tests import tiny

GREEDY = GeneratingArguments(do_sample=False, max_new_tokens=16)


def make_engine(
    template: str = "qwen3_nothink",
    generating: GeneratingArguments = GREEDY,
    scale: float = 6,
    **overrides: object,
) -> Engine:
    """A model that says many different things."""
    model = tiny.make_llama(**({"seed": 6} | overrides))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(scale)
    return Engine(model, tiny.make_tokenizer(), TEMPLATES.get(template), (2,), generating)


@contextmanager
def serving(engine: Engine, *models: Served, limits: Limits | None = None, **options) -> Iterator:
    """The address of a running server."""
    limits = limits or Limits()
    app = make_app(list(models) or [Served("tiny", engine)], limits=limits, **options)
    listening = listen("127.0.0.1", 0)
    server = make_server(app, header_s=limits.header_s)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
