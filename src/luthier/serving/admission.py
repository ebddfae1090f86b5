"""Who is let in when: so many answers at once, so many clients that wait, the rest come back."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from luthier.serving.problems import Refused

Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What one server takes upon itself."""

    max_concurrent: int = 16  # answers that are made at once
    max_waiting: int = 32  # clients that wait for their turn
    deadline_s: float = 600.0  # from a request to the end of its answer
    header_s: float = 10.0  # for the first line and the headers of a request
    body_s: float = 60.0  # for the body
    max_body: int = 25 * 2**20  # bytes of a body


@dataclass
class Doors:
    """Lets clients in, in their order, and counts what `/metrics` tells."""

    limits: Limits
    _inside: int = 0
    _waiting: deque[tuple[int, asyncio.Future[bool]]] = field(default_factory=deque)
    replies: Counter[tuple[str, int]] = field(default_factory=Counter)  # by route and status
    tokens: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # that all clients were inside
    num_served: int = 0

    def check(self) -> None:
        """Refuses what need not be read, since too many wait already.

        Raises:
            Refused: with status 429.
        """
        if len(self._waiting) >= max(self.limits.max_waiting, 1):
            raise self._full()

    async def enter(self, num_answers: int, until: float) -> Callable[[], None]:
        """Waits for the turn of a client; gives what it leaves by, which may be called twice.

        Raises:
            Refused: if too many wait already (429), or the turn does not come by the loop's time
                `until` (504).
        """
        loop = asyncio.get_running_loop()
        if self._waiting or not self._fits(num_answers):
            if len(self._waiting) >= self.limits.max_waiting:
                raise self._full()
            turn: asyncio.Future[bool] = loop.create_future()
            self._waiting.append((num_answers, turn))
            alarm = loop.call_at(until, _give_up, turn)
            try:
                has_come = await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.result():
                    self._leave(num_answers)
                raise
            finally:
                alarm.cancel()
                self._waiting = deque(each for each in self._waiting if each[1] is not turn)
                self._let_in()
            if not has_come:
                raise Refused("no place was free until the deadline", status=504, code="deadline")
        else:
            self._inside += num_answers
        begun, has_left = loop.time(), False

        def leave() -> None:
            nonlocal has_left
            if not has_left:
                has_left = True
                self.seconds += loop.time() - begun
                self.num_served += 1
                self._leave(num_answers)

        return leave

    def metrics(self, version: str) -> str:
        """The state in Prometheus' text form."""
        lines = [
            *_described("luthier_info", "gauge", "The version that serves."),
            f'luthier_info{{version="{version}"}} 1',
            *_described("luthier_requests_total", "counter", "Replies by route and status."),
            *(
                f'luthier_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self.replies.items())
            ),
            *_described("luthier_tokens_total", "counter", "Tokens read and made."),
            *(
                f'luthier_tokens_total{{kind="{kind}"}} {self.tokens[kind]}'
                for kind in ("prompt", "answer")
            ),
            *_described("luthier_answers_running", "gauge", "Answers that are being made."),
            f"luthier_answers_running {self._inside}",
            *_described("luthier_requests_waiting", "gauge", "Requests that wait for a place."),
            f"luthier_requests_waiting {len(self._waiting)}",
            *_described("luthier_answer_seconds", "summary", "Seconds of a request's answers."),
            f"luthier_answer_seconds_sum {self.seconds:.3f}",
            f"luthier_answer_seconds_count {self.num_served}",
        ]
        return "\n".join(lines) + "\n"

    def _fits(self, num_answers: int) -> bool:
        return not self._inside or self._inside + num_answers <= self.limits.max_concurrent

    def _leave(self, num_answers: int) -> None:
        self._inside -= num_answers
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            num_answers, turn = self._waiting.popleft()
            if not turn.done():
                self._inside += num_answers
                turn.set_result(True)

    def _full(self) -> Refused:
        # whole seconds until a place may be free: what the last clients took, at most a minute
        seconds = max(1, min(60, round(self.seconds / max(self.num_served, 1))))
        return Refused(
            f"{len(self._waiting)} requests wait already; try again in a moment",
            status=429,
            code="rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """What work gives, or a TimeoutError.

    `asyncio.wait_for` of Python before 3.12 forgets that it was cancelled when the work is done at
    that moment (python/cpython#86296).
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=max(seconds, 0))
    finally:
        task.cancel()
    if not done:
        raise TimeoutError
    return task.result()


def _give_up(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)


def _described(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
