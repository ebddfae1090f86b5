"""Two models asked the same: log-probabilities, scores and greedy answers beside each other."""

# T tokens of a probe, A of its greedy answer

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from luthier import console
from luthier.arguments.record import Arguments
from luthier.data.catalog import load_catalog
from luthier.data.reading import DatasetReader
from luthier.errors import LuthierError, ModelError
from luthier.modeling.heads import has_score
from luthier.records import IGNORE_INDEX, Conversation, Message
from luthier.stages.conversing import Conversing
from luthier.stages.stage import Stage

NUM_PROBES, MOST_TOKENS, ANSWER = 8, 96, 16
"""Prompts that are asked, the most tokens of one (its end), and of a greedy answer."""

QUESTIONS = (
    "Who are you?",
    "What is the capital of France?",
    "Write a short poem about spruce.",
    "What is 17 times 23? Think step by step.",
    "Translate to German: The string sings when the bow draws it.",
    "List three uses of hide glue.",
    "Explain in one sentence why the sky is blue.",
    "Write a Python function that reverses a string.",
)
"""What is asked where no rows of the run are at hand."""

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
"""The most that log-probabilities may differ on average. In half precision the merged weights are
rounded, and so is every product of both models; SmolLM2-135M in bfloat16 differs by 0.04."""

OUTLIER = 10
"""How many times as far as on average may the farthest of them be, in float32."""

CARRIED, SURE = 0.5, 0.1
"""How far the share of an adapter's effect that is found in the merged model may be from 1, and how
well it has to be known to be judged, as a standard error."""


@dataclass(frozen=True)
class Probe:
    """A prompt, and what the trained model answers."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a model says of a probe."""

    numbers: Tensor  # (T-1,) float32 log-probabilities of its tokens; (1,) where it has a score
    best_logps: Tensor  # (A,) float32, those of the likeliest token at each place of the answer
    is_answer: Tensor  # (A,) whether that token is the answer's


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on the same probes."""

    mean: float  # of the absolute differences of all numbers
    largest: float  # of them
    num_answers: int  # probes with the same greedy answer
    num_probes: int  # that have one

    def __str__(self) -> str:
        apart = f"{self.mean:.2g} on average, {self.largest:.2g} at most"
        if not self.num_probes:
            return apart
        return f"{apart}; {self.num_answers} of {self.num_probes} greedy answers equal"


def find_probes(arguments: Arguments, stage: Stage) -> list[Probe]:
    """Prompts of the run's data where it is at hand, of `QUESTIONS` otherwise; which, is said."""
    prompts: list[tuple[int, ...]] = []
    try:
        prompts = list(islice(_prompts_of_data(arguments, stage), NUM_PROBES))
    except (LuthierError, OSError) as problem:
        console.info(f"proof: the run's data is not at hand ({str(problem).splitlines()[0]})")
    where = ", ".join(arguments.data.dataset)
    if not prompts:
        prompts, where = _prompts_of_questions(stage), "questions of luthier's own"
    console.info(f"proof: {len(prompts)} prompts of {where}")
    return [Probe(prompt) for prompt in prompts]


def _prompts_of_data(arguments: Arguments, stage: Stage) -> Iterator[tuple[int, ...]]:
    data = arguments.data
    if not data.dataset:
        return
    catalog = load_catalog(data.dataset_dir, allow_outside=data.allow_outside)
    for name in data.dataset:
        if catalog.describe(name).place != "file":
            continue
        for batch in DatasetReader(arguments, catalog, name, stage).batches():
            for _, record in batch.records[: 4 * NUM_PROBES]:
                (outcome,) = stage.examples([record])
                if isinstance(outcome, list):
                    ids, labels = outcome[0].input_ids, outcome[0].labels
                    learned = [at for at, label in enumerate(labels) if label != IGNORE_INDEX]
                    end = learned[0] if learned and learned[0] > 1 else MOST_TOKENS
                    yield tuple(map(int, ids[:end]))[-MOST_TOKENS:]
            break


def _prompts_of_questions(stage: Stage) -> list[tuple[int, ...]]:
    assert stage.tokenizer is not None
    if not isinstance(stage, Conversing):
        return [tuple(stage.tokenizer(question)["input_ids"]) for question in QUESTIONS]
    asked = [
        Conversation((Message("user", question), Message("assistant", "")))
        for question in QUESTIONS
    ]
    outcomes = [one for one in stage.encoder.ask(asked) if isinstance(one, list)]
    if not outcomes:
        raise ModelError(
            "the template renders no question as a prompt, so that nothing can be proven. Name the "
            "template that the model was trained with."
        )
    return [tuple(map(int, one[0].input_ids))[-MOST_TOKENS:] for one in outcomes]


@torch.inference_mode()
def answer(model: Any, probes: Sequence[Probe]) -> list[Probe]:
    """The probes with the model's greedy answers; as they are where it only scores."""
    return [replace(probe, answer=tuple(_greedy(model, probe.prompt))) for probe in probes]


def _greedy(model: Any, prompt: Sequence[int]) -> Iterator[int]:
    if _scores(model):
        return
    ids, cache = torch.tensor([prompt], device=model.device), None
    for _ in range(ANSWER):
        said = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = said.past_key_values, said.logits[:, -1:].argmax(-1)
        yield int(ids)


@torch.inference_mode()
def read(model: Any, probes: Sequence[Probe]) -> list[Reading]:
    """What a model says of each probe."""
    return [_read(model, probe) for probe in probes]


def _read(model: Any, probe: Probe) -> Reading:
    ids = torch.tensor([[*probe.prompt, *probe.answer]], device=model.device)
    said = model(input_ids=ids, use_cache=False).logits[0].float()
    if _scores(model):
        none = torch.empty(0)
        return Reading(said.reshape(-1).cpu(), none, none.bool())
    logps = said[:-1].log_softmax(-1)
    targets = ids[0, 1:]
    numbers = logps.gather(-1, targets[:, None])[:, 0]
    best, best_ids = logps[len(probe.prompt) - 1 :].max(-1)
    return Reading(numbers.cpu(), best.cpu(), (best_ids == targets[len(probe.prompt) - 1 :]).cpu())


def compare(one: Sequence[Reading], other: Sequence[Reading], tie: float = 0.0) -> Difference:
    """How far two readings of the same probes are apart.

    A greedy answer is another one where `other` prefers another token by more than `tie`, and `one`
    does not.

    Raises:
        ModelError: where a number is none.
    """
    apart = (_numbers(one) - _numbers(other)).abs()
    if not torch.isfinite(apart).all():
        raise ModelError(
            "the model says numbers that are none (NaN or infinity) of the prompts. Take an "
            "earlier checkpoint, or export_dtype: bfloat16 where weights are too large for float16."
        )
    equal, num_answers = 0, 0
    for a, b in zip(one, other, strict=True):
        answered = b.numbers[len(b.numbers) - len(b.best_logps) :]
        is_same = b.is_answer | ~a.is_answer | (b.best_logps - answered <= tie)
        equal += bool(len(is_same) and is_same.all())
        num_answers += bool(len(is_same))
    return Difference(float(apart.mean()), float(apart.max()), equal, num_answers)


def judge(what: str, one: Sequence[Reading], other: Sequence[Reading], dtype: torch.dtype) -> None:
    """Says how far two models are apart; a ModelError if that is more than rounding makes."""
    bound = BOUNDS[dtype]
    found = compare(one, other, 2 * OUTLIER * bound)
    says = f"{found}; bound {bound:g} on average in {str(dtype).removeprefix('torch.')}"
    console.info(f"{what}: {says}")
    is_far = dtype == torch.float32 and found.largest > OUTLIER * bound
    if found.mean > bound or is_far or found.num_answers < found.num_probes:
        raise ModelError(
            f"{what}: {says}. Nothing was published: the model would not be the one that was "
            "trained. export_dtype: float32 rounds least; if that fails as well, please report it "
            "with adapter_config.json."
        )


def judge_effect(
    base: Sequence[Reading], trained: Sequence[Reading], merged: Sequence[Reading]
) -> None:
    """Looks that a merged model moves as its adapter does; a ModelError if it does not.

    What was merged is regressed on what the adapter does, where rounding leaves that to be seen.
    """
    effect, found = _numbers(trained) - _numbers(base), _numbers(merged) - _numbers(base)
    if not effect.any():
        console.info("the adapter changes nothing that these prompts show")
        return
    share = float(effect @ found / effect.square().sum())
    error = float((found - share * effect).norm() / effect.norm() / len(effect) ** 0.5)
    said = f"{share:.3g} (± {error:.2g}) of what the adapter does"
    console.info(f"{effect.abs().mean():.2g} on average is what it does; merged is {said}")
    if error <= SURE and abs(share - 1) > CARRIED:
        raise ModelError(f"merged is {said}. Nothing was published; please report it.")


def _numbers(readings: Sequence[Reading]) -> Tensor:
    return torch.cat([torch.cat([each.numbers, each.best_logps]) for each in readings])


def _scores(model: Any) -> bool:
    return has_score(model.get_base_model() if hasattr(model, "get_base_model") else model)
