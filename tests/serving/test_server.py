from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import torch

pytest.importorskip("openai", reason="needs luthier[api]")
pytest.importorskip("fastapi", reason="needs luthier[api]")

from luthier.serving.admission import Limits
from luthier.serving.engine import Engine
from tests.serving.served import GREEDY, make_engine, serving

TOKEN = "a-token-of-sixteen-characters"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Who are you?"}]}
LONG = CHAT | {"max_tokens": 4000, "stream": True, "logit_bias": {"2": -100}}
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/score"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(max_position_embeddings=8192)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    hosts = frozenset({"127.0.0.1", "localhost"})
    with serving(engine, hosts=hosts, limits=Limits(max_body=200_000)) as address:
        yield address


def ask(address: str, route: str, body: object = None, method: str = "", **headers: str):
    """Status, headers and body, the way curl would send it."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    with closing(connection):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            method or ("GET" if body is None else "POST"),
            route,
            data,
            {"Content-Type": "application/json"} | named,
        )
        reply = connection.getresponse()
        text = reply.read().decode()
    return reply.status, dict(reply.getheaders()), text


def error_of(text: str) -> dict:
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def begin(address: str, body: dict) -> socket.socket:
    """A connection over which a request was sent and nothing is read yet."""
    host, _, port = urlsplit(address).netloc.partition(":")
    connection = socket.create_connection((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def running(address: str) -> int:
    _, _, text = ask(address, "/metrics")
    name = "luthier_answers_running "
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def wait_until_idle(address: str, most_s: float = 1.0) -> None:
    until = time.monotonic() + most_s
    while running(address):
        assert time.monotonic() < until, "answers are still being made"
        time.sleep(0.02)


# --- who may ask


@pytest.fixture(scope="module")
def guarded(engine: Engine) -> Iterator[str]:
    with serving(engine, token=TOKEN) as address:
        yield address


@pytest.mark.parametrize(("method", "route"), ROUTES)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ü"]
)
def test_no_route_is_open_without_the_token(guarded, method, route, authorization) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    body = CHAT if method == "POST" else None

    status, told, text = ask(guarded, route, body, method, **headers)

    assert status == 401
    assert told["www-authenticate"] == "Bearer"
    assert error_of(text)["code"] == "invalid_api_key"
    assert TOKEN not in text


def test_the_token_opens(guarded: str) -> None:
    assert ask(guarded, "/health", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guarded, "/v1/chat/completions", CHAT, Authorization=f"bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize("host", ["evil.com", "localhost.evil.com", "127.0.0.1@evil.com", "", "["])
@pytest.mark.parametrize("route", ["/v1/models", "/health"])
def test_a_foreign_host_is_refused(address: str, host: str, route: str) -> None:
    status, _, text = ask(address, route, Host=host)

    assert (status, error_of(text)["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://127.0.0.1:1"])
def test_a_foreign_page_is_refused(address: str, origin: str) -> None:
    status, told, text = ask(address, "/v1/chat/completions", CHAT, Origin=origin)

    assert (status, error_of(text)["code"]) == (403, "origin_not_allowed")
    assert not [name for name in told if name.lower().startswith("access-control")]


def test_a_page_of_the_server_itself_may_ask(address: str) -> None:
    assert ask(address, "/health", Origin=address)[0] == 200


def test_cross_origin_requests_are_not_prepared(address: str) -> None:
    status, told, _ = ask(address, "/v1/models", method="OPTIONS", Origin="http://evil.com")

    assert status == 403
    assert not [name for name in told if name.lower().startswith("access-control")]


# --- what is asked wrongly


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "text", "bytes", "nan", "deep"],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_body_that_is_no_form_is_refused(address: str, body: bytes, route: str) -> None:
    status, _, text = ask(address, route, body)

    assert status == 400
    assert error_of(text)["type"] == "invalid_request_error"


def test_text_that_is_no_unicode_is_refused(address: str) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'

    status, _, text = ask(address, "/v1/chat/completions", body)

    assert status == 400
    assert "messages" in error_of(text)["param"]


def test_a_body_that_is_too_large_is_refused(address: str) -> None:
    status, _, text = ask(address, "/v1/chat/completions", b"x" * 200_001)
    assert (status, error_of(text)["code"]) == (413, "body_too_large")


def test_a_chunked_body_that_is_too_large_is_refused(address: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    with closing(connection):
        pieces = (b"x" * 10_000 for _ in range(40))
        try:
            connection.request("POST", "/v1/completions", pieces, encode_chunked=True)
            status = connection.getresponse().status
        except (BrokenPipeError, ConnectionResetError):
            status = 413  # it was closed while we were still sending
    assert status == 413


@pytest.mark.parametrize(
    ("method", "route", "expected"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/health", 405)],
)
def test_wrong_routes_are_told_in_the_same_form(address, method, route, expected) -> None:
    status, _, text = ask(address, route, method=method)

    assert status == expected
    assert route in error_of(text)["message"]


def test_a_proxy_may_leave_its_path_or_take_it_away(engine: Engine) -> None:
    with serving(engine, root_path="/proxy") as address:
        for route in ("/health", "/proxy/health"):
            assert ask(address, route)[0] == 200
        told = json.loads(ask(address, "/openapi.json")[2])
        metrics = ask(address, "/metrics")[2]

    assert told["servers"] == [{"url": "/proxy"}]
    assert 'route="/health",status="200"} 2' in metrics


def test_scores_are_not_there_without_a_reward_model(address: str) -> None:
    status, _, text = ask(address, "/v1/score", {"model": "tiny", "messages": ["x"]})

    assert (status, error_of(text)["code"]) == (503, "no_reward_model")


def test_slow_headers_and_bodies_are_not_waited_for(engine: Engine) -> None:
    with serving(engine, limits=Limits(header_s=0.3, body_s=0.3)) as address:
        host, _, port = urlsplit(address).netloc.partition(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127")
            assert connection.recv(100) == b""
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            head = (
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n{"
            )
            connection.sendall(head)
            assert b" 408 " in connection.recv(100)


# --- many, slow and vanishing clients


def test_a_client_that_goes_frees_its_place(engine: Engine) -> None:
    with serving(engine, limits=Limits(max_concurrent=4)) as address:
        for is_stream in (True, False):
            gone = [begin(address, LONG | {"stream": is_stream}) for _ in range(20)]
            until = time.monotonic() + 10
            while running(address) < 4:
                assert time.monotonic() < until
            for connection in gone:
                connection.close()
            wait_until_idle(address)

        status, _, _ = ask(address, "/v1/chat/completions", CHAT)

        assert status == 200


def test_a_client_that_reads_slowly_holds_up_nobody(engine: Engine) -> None:
    with serving(engine, limits=Limits(max_concurrent=1)) as address:
        with closing(begin(address, LONG | {"max_tokens": 300})) as slow:
            assert slow.recv(1)
            status, _, _ = ask(address, "/v1/chat/completions", CHAT)
            assert status == 200
            assert slow.recv(1)


def test_those_that_come_too_late_are_told_to_come_back(engine: Engine) -> None:
    with serving(engine, limits=Limits(max_concurrent=1, max_waiting=1)) as address:
        first = begin(address, LONG)
        while not running(address):
            time.sleep(0.01)
        second = begin(address, CHAT)
        time.sleep(0.2)

        status, told, text = ask(address, "/v1/chat/completions", CHAT)

        assert (status, error_of(text)["code"]) == (429, "rate_limit_exceeded")
        assert int(told["retry-after"]) >= 1
        assert ask(address, "/health")[0] == 200
        first.close()
        second.settimeout(10)
        assert b" 200 " in second.recv(100)
        second.close()


def test_an_answer_has_a_deadline(engine: Engine) -> None:
    with serving(engine, limits=Limits(deadline_s=0.4, max_concurrent=1)) as address:
        whole = ask(address, "/v1/chat/completions", LONG | {"stream": False})
        status, _, events = ask(address, "/v1/chat/completions", LONG)
        wait_until_idle(address)

    assert (whole[0], error_of(whole[2])["code"]) == (504, "deadline")
    assert status == 200
    assert '"code": "deadline"' in events.splitlines()[-2]


def test_many_clients_at_once_get_their_own_answers(address: str) -> None:
    found: dict[int, set[str]] = {}

    def one(number: int) -> None:
        body = CHAT | {"seed": number, "temperature": 1.5, "top_p": 1, "max_tokens": 8}
        text = ask(address, "/v1/chat/completions", body)[2]
        found.setdefault(number, set()).add(json.loads(text)["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=one, args=(number % 8,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert all(len(texts) == 1 for texts in found.values())


# --- a model that fails


def test_weights_that_are_not_finite_are_an_error_and_tell_on_health() -> None:
    engine = make_engine()
    with torch.no_grad():
        engine.model.lm_head.weight[3, 0] = torch.nan
    with serving(engine) as address:
        whole = ask(address, "/v1/chat/completions", CHAT)
        stream = ask(address, "/v1/chat/completions", CHAT | {"stream": True})
        health = ask(address, "/health")
        with torch.no_grad():
            engine.model.lm_head.weight[3, 0] = 0
        again = ask(address, "/v1/chat/completions", CHAT)
        healed = ask(address, "/health")

    assert whole[0] == stream[0] == 500
    assert error_of(whole[2])["type"] == "server_error"
    assert "finite" in error_of(whole[2])["message"]
    assert (health[0], error_of(health[2])["code"]) == (503, "unhealthy")
    assert again[0] == healed[0] == 200


def test_what_clients_ask_is_not_logged(engine: Engine, capfd, monkeypatch) -> None:
    secret = "canary-in-a-question"
    with serving(engine) as address:
        ask(
            address,
            "/v1/chat/completions",
            CHAT | {"messages": [{"role": "user", "content": secret}]},
        )
        ask(address, "/v1/chat/completions", CHAT | {"nonsense": secret})
        metrics = ask(address, f"/{secret}")[2] and ask(address, "/metrics")[2]

    said = capfd.readouterr()
    assert secret not in said.out + said.err + metrics


def test_thoughts_stand_apart_from_the_answer() -> None:
    engine = replace(
        make_engine("qwen3"), generating=GREEDY.model_copy(update={"max_new_tokens": 60})
    )
    ids = engine.tokenizer("<think>\nHm.\n</think>\n\nYes.", add_special_tokens=False)["input_ids"]
    forced = _Says(engine, [*ids, 2])
    with serving(forced) as address:
        whole = json.loads(ask(address, "/v1/chat/completions", CHAT)[2])
        events = ask(address, "/v1/chat/completions", CHAT | {"stream": True})[2]
        response = json.loads(
            ask(address, "/v1/responses", {"model": "tiny", "input": "Who are you?"})[2]
        )

    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    assert 0 < whole["usage"]["completion_tokens_details"]["reasoning_tokens"] < len(ids)
    deltas = [
        json.loads(line[6:])["choices"][0]["delta"]
        for line in events.splitlines()
        if line.startswith("data: {")
    ]
    assert "".join(one.get("reasoning_content") or "" for one in deltas) == "Hm."
    assert "".join(one.get("content") or "" for one in deltas) == "Yes."
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert response["output"][0]["content"][0]["text"] == "Hm."


def test_calls_that_the_model_writes_are_told_from_its_text() -> None:
    engine = make_engine("qwen", max_position_embeddings=2048)
    calls = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
    ids = engine.tokenizer(f"One moment.\n{calls}\n{calls}")["input_ids"]
    tool = {"type": "function", "function": {"name": "clock"}}
    with serving(_Says(engine, [*ids, 2])) as address:
        body = CHAT | {"tools": [tool], "max_tokens": len(ids) + 1}
        both = json.loads(ask(address, "/v1/chat/completions", body)[2])["choices"][0]
        one = json.loads(
            ask(address, "/v1/chat/completions", body | {"parallel_tool_calls": False})[2]
        )["choices"][0]

    assert both["finish_reason"] == one["finish_reason"] == "tool_calls"
    assert both["message"]["content"] == one["message"]["content"] == "One moment."
    functions = [call["function"] for call in both["message"]["tool_calls"]]
    assert functions == [{"name": "clock", "arguments": '{"zone": "UTC"}'}] * 2
    assert [call["function"] for call in one["message"]["tool_calls"]] == functions[:1]


def _Says(engine: Engine, ids: list[int]) -> Engine:
    """The engine with a model that says the same tokens to everybody."""
    model = engine.model
    vocabulary = model.config.vocab_size

    def force(module, arguments, options, output):
        positions = options["position_ids"]
        logits = torch.zeros(*output.logits.shape[:2], vocabulary)
        begins = starts.setdefault("length", int(positions.max()))
        for row in range(len(logits)):
            at = int(positions[row, -1]) - begins
            logits[row, -1, ids[min(max(at, 0), len(ids) - 1)]] = 50.0
        output.logits = logits
        return output

    starts: dict[str, int] = {}
    model.register_forward_hook(force, with_kwargs=True)
    return engine
