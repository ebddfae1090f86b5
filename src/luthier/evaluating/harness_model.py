"""The model that lm-eval asks: likelihoods by the reads, answers by the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from luthier import console
from luthier.arguments.record import Arguments
from luthier.errors import ArgumentsError
from luthier.evaluating.likelihood import Likelihood
from luthier.example import Example
from luthier.generating.generator import context_length
from luthier.generating.request import Request, Sampling
from luthier.generating.text_stream import TextStream
from luthier.modeling.attention.interface import remove_tree_attention
from luthier.records import IGNORE_INDEX
from luthier.serving.engine import Engine

MOST_TOKENS = 2048
"""The context of a model without a bound, as lm-eval takes it."""


class HarnessModel(TemplateLM):
    """An engine as a model of lm-eval."""

    def __init__(self, engine: Engine, arguments: Arguments) -> None:
        super().__init__()
        self.engine, self.arguments = engine, arguments
        self.tokenizer = engine.tokenizer
        self.max_length = context_length(engine.model) or MOST_TOKENS

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(self.eot_token_id if bos is None else bos)

    @property
    def tokenizer_name(self) -> str:
        """By which lm-eval tells renderings apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add = {"add_special_tokens": False} if bos and string.startswith(bos) else {}
        else:
            add = {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **add))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        rows, num_cut = [], 0
        for _, context, answer in requests:
            if len(answer) > self.max_length:
                raise ArgumentsError(
                    f"task: an answer has {len(answer):,} tokens, and the model reads "
                    f"{self.max_length:,}."
                )
            whole = [*context, *answer][-(self.max_length + 1) :]
            num_cut += len(whole) < len(context) + len(answer)
            rows.append((whole, len(answer)))
        if num_cut:
            console.warn(
                f"{num_cut:,} of {len(rows):,} requests are longer than the model's "
                f"{self.max_length:,} tokens; they lost their beginning"
            )
        order = sorted(range(len(rows)), key=lambda at: rows[at][0])
        examples = []
        for at in order:
            ids, count = rows[at]
            labels = [IGNORE_INDEX] * (len(ids) - count) + ids[len(ids) - count :]
            examples.append(Example(ids, labels, count))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        pad = self.tokenizer.pad_token_id or 0
        if examples:
            read = Likelihood(self.engine.model, self.arguments, pad, examples).read(examples)
            for at, (said,) in zip(order, read, strict=True):
                found[at] = (said.logp, said.is_greedy)
        for request, answer_of in zip(requests, found, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer_of)
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        windows, owners = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (logp, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += logp
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        remove_tree_attention(self.engine.model)
        asked, stops = [], []
        eos = self.tokenizer.decode([self.eot_token_id])
        for request in requests:
            context, given = request.args
            options = normalize_gen_kwargs(dict(given), 256)
            until = handle_stop_sequences(options.pop("until", None), eos=eos)
            most = int(options.pop("max_gen_toks"))
            sampling = self._sampling(options, most)
            room = self.max_length - most
            if room < 1:
                raise ArgumentsError(
                    f"task: it asks for {most:,} new tokens, and the model reads "
                    f"{self.max_length:,} in all."
                )
            ids = self.tok_encode(context)[-room:]
            stops.append(until)
            asked.append(
                Request(ids, sampling, (self.eot_token_id,), until, skip_special_tokens=True)
            )
        found = [""] * len(asked)
        for at, answer in self.engine.generator.answer(asked):
            text = TextStream(self.tokenizer, True, stops[at])
            ids = [each for each in answer.token_ids if each != self.eot_token_id]
            found[at] = "".join(text.push(each) for each in ids) + text.end()
        return found

    def _sampling(self, options: dict[str, Any], most: int) -> Sampling:
        known = {each.name for each in fields(Sampling)} - {"max_new_tokens", "seed"}
        if unknown := {name for name, value in options.items() if value is not None} - known:
            raise ArgumentsError(
                f"task: it sets {', '.join(sorted(unknown))} for its answers; known are "
                f"{', '.join(sorted(known))}."
            )
        given = {name: value for name, value in options.items() if value is not None}
        sampling = Sampling(max_new_tokens=most, do_sample=False)
        return replace(sampling, **given, seed=self.arguments.training.seed)
