"""Rows that are answered together: one that ended gives its place, or all wait for the last."""

# B rows, L tokens, V vocabulary

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from luthier.generating.request import Token
from luthier.generating.row import Row, choose
from luthier.generating.row_cache import SLACK, RowCache

TOKENS_TOGETHER = 4096
"""The most tokens of prompts, with their padding, that one forward pass reads; or one prompt."""

FILLED = 0.75
"""The least share of the longest prompt that one read together with it has."""


class RunningBatch:
    """Rows of one adapter that a model goes on with together, a token of each in a step.

    A row that has ended gives its place to the last one; a new one is read and stands beside them.
    """

    def __init__(self, model: Any, windows: Sequence[int | None], pad_token_id: int) -> None:
        self.rows: list[Row] = []
        self._model, self._pad = model, pad_token_id
        self._cache = RowCache(windows)
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._options: dict[str, Any] = {"use_cache": True, "past_key_values": self._cache}
        if keeps:
            self._options["logits_to_keep"] = 1

    @property
    def bytes_per_token(self) -> int:
        """What one token of a row takes; 0 before the first was read."""
        return self._cache.bytes_per_token

    def room(self, joining: Sequence[Row] = ()) -> int:
        """The tokens that there will be room for until all rows have ended."""
        rows = [*self.rows, *joining]
        return len(rows) * (max((row.most for row in rows), default=0) + SLACK)

    def admit(self, rows: Sequence[Row]) -> None:
        """Reads rows that join, equal ones once, and gives each its next token."""
        longest_first = sorted(rows, key=lambda row: -len(row.ids))
        while longest_first:
            longest = len(longest_first[0].ids)
            alike: dict[tuple[int, ...], list[Row]] = {}
            for row in longest_first:
                ids = tuple(row.ids)
                if ids not in alike and alike:
                    too_many = (len(alike) + 1) * longest > TOKENS_TOGETHER
                    if too_many or len(ids) < FILLED * longest:
                        break
                alike.setdefault(ids, []).append(row)
            group = [row for same in alike.values() for row in same]
            self._read(alike)
            longest_first = longest_first[len(group) :]

    def step(self) -> None:
        """Gives each row its next token."""
        self._leave()
        if not self.rows:
            return
        frame, device = self._cache.window, self._model.device
        lengths = torch.tensor([len(row.request.prompt) + len(row.new) for row in self.rows])
        width = int(lengths.max())
        frame.start = frame.end - width + 1  # the last token of a row is not yet in the cache
        self._cache.reserve(len(self.rows), width - 1)
        ids = torch.tensor([[row.new[-1]] for row in self.rows])
        logits = self._forward(ids, _mask(lengths, width), (lengths - 1)[:, None], device)
        choices = choose(logits, self.rows)
        frame.end += 1
        for row, choice in zip(self.rows, choices, strict=True):
            row.take(choice)

    def _read(self, alike: dict[tuple[int, ...], list[Row]]) -> None:
        """Reads prompts of like lengths, and what was answered to them before memory ran out."""
        self._leave()
        frame, first, device = self._cache.window, len(self.rows), self._model.device
        prompts, count = list(alike), sum(map(len, alike.values()))
        lengths = torch.tensor([len(each) for each in prompts])
        width = int(lengths.max())
        self._cache.reserve(first + count, width)
        ids = torch.full((len(prompts), width), self._pad)
        for row, prompt in zip(ids, prompts, strict=True):
            row[width - len(prompt) :] = torch.tensor(prompt)
        mask = _mask(lengths, width)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        start, end = frame.start, frame.end
        frame.row, frame.start, frame.end = first, end - width, end - width
        try:
            logits = self._forward(ids, mask, positions, device)
        finally:
            frame.row, frame.start, frame.end = 0, min(start, end - width), end
        rows: list[Row] = []
        sources: list[int] = []
        for number, same in enumerate(alike.values()):
            rows.append(same[0])
            sources.append(number)
        for number, same in enumerate(alike.values()):
            for row in same[1:]:
                self._cache.move(first + number, first + len(rows))
                rows.append(row)
                sources.append(number)
        choices = choose(logits[sources], rows)
        self.rows += rows
        for row, choice in zip(rows, choices, strict=True):
            row.take(choice)

    def _leave(self) -> None:
        """Gives the places of rows that have ended to the last ones."""
        place = 0
        while place < len(self.rows):
            if self.rows[place].end is None:
                place += 1
                continue
            last = self.rows.pop()
            if place < len(self.rows):
                self._cache.move(len(self.rows), place)
                self.rows[place] = last
        if not self.rows:
            self._cache.window.start = self._cache.window.end

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, device: Any) -> Tensor:
        """The logits of each row's last token, (B, V) float32."""
        output = self._model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            **self._options,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _mask(lengths: Tensor, width: int) -> Tensor:
    """(B, width) int64: 0 before each row's first token."""
    return (torch.arange(width) >= width - lengths[:, None]).long()


def generate_padded(
    model: Any, rows: Sequence[Row], config: GenerationConfig, pad_token_id: int
) -> None:
    """Answers rows by transformers' own `generate`, padded on the left; all wait for the longest.

    Each row's tokens are chosen by its own settings all the same, by a processor that leaves
    `generate` no choice. Beams choose for themselves, and come at the end.
    """
    prompts = [row.ids for row in rows]
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad_token_id)
    for row, prompt in zip(input_ids, prompts, strict=True):
        row[width - len(prompt) :] = torch.tensor(prompt)
    config.max_new_tokens = max(row.limit - len(row.new) for row in rows)
    config.pad_token_id = pad_token_id
    has_beams = config.num_beams is not None and config.num_beams > 1

    def choose_all(input_ids: Tensor, scores: Tensor) -> Tensor:
        going = [b for b, row in enumerate(rows) if row.end is None]
        choices = choose(scores[going].float(), [rows[b] for b in going])
        only = torch.full_like(scores, -torch.inf)
        only[:, pad_token_id] = 0.0
        for b, choice in zip(going, choices, strict=True):
            if isinstance(choice, Token):
                only[b, pad_token_id] = -torch.inf
                only[b, choice.id] = 0.0
            rows[b].take(choice)
        return only

    def have_ended(input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        for row in rows:
            if row.end is None and row.answering.is_cancelled:
                row.finish("cancelled")
        is_over = [row.end is not None for row in rows]
        if has_beams:
            is_over = [all(is_over)] * len(input_ids)
        return torch.tensor(is_over, device=input_ids.device)

    sequences = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=_mask(torch.tensor([len(each) for each in prompts]), width).to(model.device),
        generation_config=config,
        logits_processor=[] if has_beams else [choose_all],
        stopping_criteria=[have_ended],
    )
    if has_beams:
        for row, new in zip(rows, sequences[:, width:].tolist(), strict=True):
            for token_id in new:
                if row.end is None:
                    row.take(Token(token_id))
