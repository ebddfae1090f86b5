"""One answer in the making: what was asked, its tokens so far, and the choice of the next ones."""

# B rows, V vocabulary, K likeliest

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from luthier.errors import LuthierError, ModelError, NonFiniteError
from luthier.generating.request import Answer, Answering, FinishReason, Token
from luthier.generating.text_stream import TextStream

Choice = Token | LuthierError
"""A row's next token, or why there is none."""


class Row:
    """A request with its tokens so far and its random numbers.

    Nothing that a step may have to do twice, because memory ran out, is lost: a random number that
    was drawn, or a mask that was asked for, is kept until a token is taken.

    Args:
        answering: hears of each token, and of the end.
        index: the caller's number of the request.
        limit: the most tokens of the answer, at least one.
        tokenizer: decodes what stop strings are found on.
    """

    def __init__(
        self, answering: Answering, index: int, limit: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        request = answering.request
        self.answering, self.request, self.index, self.limit = answering, request, index, limit
        self.tokens: list[Token] = []
        self.new: list[int] = []  # the ids of `tokens`
        self.counts: Counter[int] = Counter()  # how often the answer has a token
        self.end: Answer | LuthierError | None = None  # once it is known
        self._stops = set(request.stop_token_ids)
        self._text = (
            TextStream(tokenizer, request.skip_special_tokens, request.stop_strings)
            if request.stop_strings
            else None
        )
        self._random: torch.Generator | None = None
        if not request.sampling.is_greedy:
            seed = request.sampling.seed
            if seed is None:
                seed = int(torch.randint(2**62, ()))
            self._random = torch.Generator().manual_seed(seed)
        self._drawn: float | None = None
        self._asked: tuple[Tensor | None] | None = None

    @property
    def ids(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.request.prompt, *self.new]

    @property
    def most(self) -> int:
        """How many tokens prompt and answer may come to."""
        return len(self.request.prompt) + self.limit

    def draw(self) -> float:
        """The random number in [0, 1) of the next token."""
        if self._drawn is None:
            self._drawn = float(torch.rand((), generator=self._random, dtype=torch.float64))
        return self._drawn

    def mask(self) -> Tensor | None:
        """Which tokens may come next, (V,) bool; None where every one may."""
        if self._asked is None and self.request.allowed is not None:
            self._asked = (self.request.allowed(self.new),)
        return None if self._asked is None else self._asked[0]

    def take(self, choice: Choice) -> None:
        """Goes on by a token, or ends."""
        self._drawn = self._asked = None
        if isinstance(choice, LuthierError):
            self.fail(choice)
            return
        self.tokens.append(choice)
        self.new.append(choice.id)
        self.counts[choice.id] += 1
        self.answering.put(choice)
        if choice.id in self._stops:
            self.finish("stop")
            return
        if self._text is not None:
            self._text.push(choice.id)
            if self._text.stop is None and len(self.new) == self.limit:
                self._text.end()
            if self._text.stop is not None:
                self.finish("stop", self._text.stop)
                return
        if len(self.new) == self.limit:
            self.finish("length")

    def finish(self, reason: FinishReason, stop: str | None = None) -> None:
        """The answer is whole."""
        self.end = Answer(tuple(self.tokens), reason, stop)
        self.answering.end(self.end)

    def fail(self, problem: LuthierError) -> None:
        """There will be no answer."""
        self.end = problem
        self.answering.end(problem)


def choose(logits_BV: Tensor, rows: Sequence[Row]) -> list[Choice]:
    """The next token of each row by its own settings, whatever stands beside it.

    Args:
        logits_BV: float32, of the rows' last tokens; changed in place.
        rows: as many.
    """
    raw = {}
    told = [b for b, row in enumerate(rows) if row.request.num_logprobs is not None]
    if told:
        raw = dict(zip(told, torch.log_softmax(logits_BV[told], dim=-1), strict=True))
    problems: dict[int, LuthierError] = {}
    for b, row in enumerate(rows):
        try:
            _edit(logits_BV[b], row)
        except LuthierError as problem:
            problems[b] = problem
        except Exception as problem:
            problems[b] = ModelError(f"what an answer may go on with could not be told: {problem}")
    best, likeliest = logits_BV.max(dim=-1)
    ids = likeliest.tolist()
    for b, number in enumerate(best.isfinite().tolist()):
        if not number and b not in problems:
            problems[b] = NonFiniteError(
                f"the model gave no finite logits after {len(rows[b].ids):,} tokens: weights that "
                "are not finite, or a half precision whose range is too small. Look at the weights "
                "it was loaded from, or set infer_dtype: float32."
            )
    groups: dict[tuple[int, bool], list[int]] = {}
    for b, row in enumerate(rows):
        if not row.request.sampling.is_greedy and b not in problems:
            most = min(max(row.request.sampling.top_k, 0), logits_BV.shape[1])
            groups.setdefault((most, row.request.sampling.top_p < 1), []).append(b)
    for (most, is_cut), members in groups.items():
        drawn = _draw(logits_BV[members], [rows[b] for b in members], most, is_cut)
        for b, id in zip(members, drawn, strict=True):
            ids[b] = id
    return [
        problems[b] if b in problems else _token(id, raw.get(b), rows[b].request.num_logprobs)
        for b, id in enumerate(ids)
    ]


def _edit(logits_V: Tensor, row: Row) -> None:
    """Penalties, bias and what is allowed, in place."""
    sampling, device = row.request.sampling, logits_V.device
    if sampling.repetition_penalty != 1:
        seen = torch.tensor([*{*row.request.prompt, *row.counts}], device=device)
        scores = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if row.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        seen = torch.tensor([*row.counts], device=device)
        counts = torch.tensor([*row.counts.values()], device=device)
        logits_V[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        biased = torch.tensor([*sampling.logit_bias], device=device)
        logits_V[biased] += torch.tensor([*sampling.logit_bias.values()], device=device)
    mask = row.mask()
    if mask is not None:
        known = min(len(mask), len(logits_V))
        allowed = torch.zeros_like(logits_V, dtype=torch.bool)
        allowed[:known] = mask[:known].to(device)
        if not allowed.any():
            raise ModelError("nothing is allowed to come next in an answer")
        logits_V.masked_fill_(~allowed, -torch.inf)


def _draw(logits_BV: Tensor, rows: Sequence[Row], most: int, is_cut: bool) -> list[int]:
    """A token for each row by its random number, through the inverse of the distribution."""
    settings = [row.request.sampling for row in rows]
    options: dict[str, Any] = {"dtype": torch.float64, "device": logits_BV.device}
    ids_BK: Tensor | None = None
    if most:
        logits_BV, ids_BK = logits_BV.topk(most, dim=-1)
    elif is_cut:
        logits_BV, ids_BK = logits_BV.sort(dim=-1, descending=True, stable=True)
    temperatures = torch.tensor([each.temperature for each in settings], **options)[:, None]
    probs = torch.softmax(logits_BV.double() / temperatures, dim=-1)
    sums = probs.cumsum(dim=-1)
    if is_cut:
        top_p = torch.tensor([each.top_p for each in settings], **options)[:, None]
        probs = torch.where(sums - probs < top_p, probs, 0.0)  # a token that crosses it is kept
        sums = probs.cumsum(dim=-1)
    drawn = torch.tensor([row.draw() for row in rows], **options)[:, None] * sums[:, -1:]
    last = (probs > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    places = torch.minimum((sums <= drawn).sum(dim=-1, keepdim=True), last)
    chosen = places if ids_BK is None else ids_BK.gather(1, places)
    ids: list[int] = chosen[:, 0].tolist()
    return ids


def _token(id: int, logprobs_V: Tensor | None, num_top: int | None) -> Token:
    if logprobs_V is None or num_top is None:
        return Token(id)
    values, ids = logprobs_V.topk(num_top)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(id, float(logprobs_V[id]), top)
