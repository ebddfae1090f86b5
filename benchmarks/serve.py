"""The API under load: replies by status, the server's memory, and how long /health takes meanwhile.

A tiny model, whose server is what is measured: many clients ask without pause, half of them for
streams, and come back after a 429 when they are told to. Then some clients go in the middle of long
answers: how long does the server compute for nobody, and how long does the next one wait? Last, one
reads a byte a second while others ask as before. There is no peer; the figures are times and bytes,
with those of a server without load beside them. The rows end in benchmarks/serve.csv.

    python benchmarks/serve.py --clients 200 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import asyncio  # needs a module that benchmarks/tokenize.py hides before
from concurrent.futures import ThreadPoolExecutor

from benchmarks import figures, material, sides

PROBE_EVERY_S = 0.05

MOST_S = 60.0
"""After this long without a reply a client gives up, and the script fails."""

Figures = dict[str, Any]


def main(words: list[str] | None = None) -> None:
    """Starts the server, has it asked in three ways, prints what came of it, keeps a row."""
    options = parse(words)
    table = figures.Table(__file__, options.results)
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "tiny"))
        sides.run("material:make_model", {"model": "tiny", "dtype": "float32", "folder": model}, 1)
        with serving(model, options.threads) as (port, pid):
            asyncio.run(crowd(port, options.clients, 3.0))  # what is made once, is made now
            before, begun = memory(pid), processor(pid)
            alone = sides.run("serve:probe", {"port": port, "seconds": options.seconds / 6}, 1)
            with ThreadPoolExecutor(1) as pool:
                arguments = {"port": port, "seconds": options.seconds}
                probing = pool.submit(sides.run, "serve:probe", arguments, 1)
                replies = asyncio.run(crowd(port, options.clients, options.seconds))
                found: Figures = {"clients": options.clients, "seconds": options.seconds}
                found |= {f"replies_{status}": count for status, count in sorted(replies.items())}
                found |= {"rss_mib": before / 2**20, "grown_mib": (memory(pid) - before) / 2**20}
                found |= probing.result().value
                found["server_cpu_s"] = processor(pid) - begun
                found["alone_p99_ms"] = alone.value["health_p99_ms"]
            found |= asyncio.run(vanish(port, options.gone))
            found |= asyncio.run(read_slowly(port))
    for name, figure in found.items():
        print(f"    {name:<24} {figure:10.3f}")
    table.add(
        {"threads": options.threads} | {name: round(figure, 4) for name, figure in found.items()}
    )
    table.draw(
        "p99 of /health under load, ms",
        lambda row: f"{row['when'][:16]}, {row['clients']} clients",
        "health_p99_ms",
    )
    others = set(replies) - {200, 429}
    if others:
        raise SystemExit(f"replies of other kinds than 200 and 429: {sorted(others)}")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200, help="that ask at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="of their load")
    parser.add_argument("--gone", type=int, default=20, help="clients that go in the middle")
    figures.add_options(parser, __file__, threads=1)
    return parser.parse_args(words)


@contextmanager
def serving(model: str, threads: int) -> Iterator[tuple[int, int]]:
    """Port and process of `luthier api` with a model."""
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "luthier", "api", "--port", "0", "--served_name", "tiny"]
    words += ["--model_name_or_path", model, "--template", material.TEMPLATES["tiny"]]
    server = subprocess.Popen(
        words,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        log = []
        for line in server.stdout:
            log.append(line)
            if "serving at" in line:
                yield int(line.partition("127.0.0.1:")[2].partition("/")[0]), server.pid
                break
        else:
            raise SystemExit(f"the server has not started:\n{''.join(log[-15:])}")
    finally:
        server.terminate()
        server.communicate(timeout=60)


def memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    import psutil

    resident: int = psutil.Process(pid).memory_info().rss
    return resident


def processor(pid: int) -> float:
    """Seconds of processor time of a process."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def begin(
    port: int, body: Figures | None, route: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection over which a request was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += "Connection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return reader, writer


async def ask(
    port: int, body: Figures | None = None, route: str = "/v1/chat/completions"
) -> tuple[int, str]:
    """Status and text of a reply."""
    reader, writer = await begin(port, body, route)
    try:
        text = (await asyncio.wait_for(reader.read(), MOST_S)).decode()
    finally:
        writer.close()
    return int(text.split(" ", 2)[1]), text


def chat(number: int, most: int = 16, *, is_stream: bool = False) -> Figures:
    """A short question."""
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"Who are you, and who is {number}?"}],
        "max_tokens": most,
        "stream": is_stream,
        "seed": number,
        "logit_bias": {"2": -100},  # never the end of the answer
    }


async def crowd(port: int, count: int, seconds: float) -> Counter[int]:
    """Has so many clients ask for so long; how often each status came."""
    until = time.monotonic() + seconds
    replies: Counter[int] = Counter()

    async def client(number: int) -> None:
        draw = random.Random(number)
        await asyncio.sleep(draw.uniform(0, 0.5))
        while time.monotonic() < until:
            status, text = await ask(port, chat(number, is_stream=number % 2 == 0))
            if status == 200 and ("[DONE]" if number % 2 == 0 else '"usage"') not in text:
                status = 0  # an answer that was cut off
            replies[status] += 1
            if status == 429:
                told = text.lower().partition("\r\nretry-after: ")[2].partition("\r\n")[0]
                await asyncio.sleep(draw.uniform(1, 1.5) * int(told))

    await asyncio.gather(*(client(number) for number in range(count)))
    return replies


def probe(port: int, seconds: float) -> Figures:
    """How long `/health` takes, asked from a process of its own."""

    async def ask_for_long() -> list[float]:
        taken, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            begun = time.monotonic()
            status, _ = await ask(port, route="/health")
            taken.append(time.monotonic() - begun)
            assert status == 200, f"/health says {status}"
            await asyncio.sleep(PROBE_EVERY_S)
        return sorted(taken)

    taken = asyncio.run(ask_for_long())
    return {
        "health_p50_ms": 1000 * statistics.median(taken),
        "health_p99_ms": 1000 * taken[min(int(0.99 * len(taken)), len(taken) - 1)],
        "health_max_ms": 1000 * taken[-1],
    }


async def vanish(port: int, count: int) -> Figures:
    """Clients go in the middle of long answers, streamed or not."""
    found: Figures = {}
    for is_stream in (True, False):
        body = chat(1, 6000, is_stream=is_stream)
        connections = [await begin(port, body, "/v1/chat/completions") for _ in range(count)]
        await idle(port, is_wanted=False)
        for _, writer in connections:
            writer.transport.abort()
        begun = time.monotonic()
        await idle(port, is_wanted=True)
        freed = time.monotonic()
        status, _ = await ask(port, chat(2, 1))
        assert status == 200, f"the next request got {status}"
        kind = "stream" if is_stream else "whole"
        found[f"freed_{kind}_s"] = freed - begun
        found[f"next_{kind}_s"] = time.monotonic() - freed
    return found


async def idle(port: int, *, is_wanted: bool) -> None:
    """Waits until answers are being made, or none any more."""
    until = time.monotonic() + MOST_S
    while time.monotonic() < until:
        _, text = await ask(port, route="/metrics")
        if ("luthier_answers_running 0\n" in text) == is_wanted:
            return
        await asyncio.sleep(0.01)
    raise SystemExit("answers are still being made" if is_wanted else "no answer is being made")


async def read_slowly(port: int) -> Figures:
    """Others ask as before while one reads a byte a second of a long stream."""

    async def each() -> float:
        taken = []
        for number in range(15):
            begun = time.monotonic()
            status, _ = await ask(port, chat(number))
            assert status == 200, f"a client beside a slow one got {status}"
            taken.append(time.monotonic() - begun)
        return statistics.median(taken)

    alone = await each()
    reader, writer = await begin(port, chat(1, 6000, is_stream=True), "/v1/chat/completions")

    async def read() -> None:
        while await reader.read(1):
            await asyncio.sleep(1)

    reading = asyncio.ensure_future(read())
    await idle(port, is_wanted=False)
    try:
        beside = await each()
    finally:
        reading.cancel()
        writer.transport.abort()
    return {"request_alone_s": alone, "request_beside_slow_s": beside}


if __name__ == "__main__":
    main()
