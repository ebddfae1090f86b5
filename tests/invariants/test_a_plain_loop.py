"""stages of answers: loss and gradients of a plain loop, each sequence alone with whole logits"""

# T tokens, V vocabulary

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.batching.padded import pad
from luthier.batching.tree import build_tree
from luthier.example import REFERENCE, Example
from luthier.modeling.attention.interface import install_tree_attention
from luthier.modeling.reads import read_logps
from tests.stages.made import make_stage

Z0 = 0.07
"""The mean log-ratio of other answers, as far as a step of kto was told."""

CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"stage": "dpo"},
    "sigmoid, ld_alpha": {"stage": "dpo", "ld_alpha": 0.25},
    "ipo": {"stage": "dpo", "pref_loss": "ipo"},
    "ipo, ld_alpha": {"stage": "dpo", "pref_loss": "ipo", "ld_alpha": 0.25},
    "kto": {"stage": "kto", "kto_chosen_weight": 0.8, "kto_rejected_weight": 1.3, "pref_ftx": 0.2},
    "rm": {"stage": "rm", "center_rewards_coefficient": 0.05},
}


def pair(shared: int, chosen: int, rejected: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(5, 90, (count,), generator=generator).tolist()

    prompt, answers = tokens(shared), (tokens(chosen), tokens(rejected))
    return Example(
        [token for answer in answers for token in prompt + answer],
        [label for answer in answers for label in [-100] * shared + answer],
        1,
        (shared + chosen, shared + rejected),
        sequence_numbers={"margin": (seed / 4, seed / 4)},
    )


PAIRS = [pair(40, 5, 9, 1), pair(33, 7, 3, 2), pair(2, 4, 4, 3)]

MARKED = [
    Example(part.input_ids, part.labels, 1, sequence_numbers={"label": (label,)})
    for each in PAIRS
    for part, label in zip(each.each_sequence(), (1.0, 0.0), strict=True)
]


def logps_of(model: Any, part: Example) -> Tensor:
    """(T,) of the answer's tokens."""
    labels_T = torch.as_tensor(part.labels)[1:]
    logits_TV = model(torch.as_tensor(part.input_ids)[None]).logits[0, :-1]
    logps_T: Tensor = logits_TV.log_softmax(-1).gather(1, labels_T.clamp(min=0)[:, None])[:, 0]
    return logps_T[labels_T >= 0]


def of_pair(settings: dict[str, Any], model: Any, reference: Any, example: Example) -> Tensor:
    """The loss of dpo, as the papers have it."""
    alpha = settings.get("ld_alpha", 1.0)
    read = [
        (logps_of(model, part), logps_of(reference, part).detach())
        for part in example.each_sequence()
    ]
    shortest = min(len(logps_T) for logps_T, _ in read)
    ratios, averages = [], []
    for of_models in read:
        ours, theirs = (
            each_T[:shortest].sum() + alpha * each_T[shortest:].sum() for each_T in of_models
        )
        ratios.append(ours - theirs)
        averages.append((ours - theirs) / len(of_models[0]))
    if settings.get("pref_loss") == "ipo":
        return (averages[0] - averages[1] - 1 / (2 * 0.1)) ** 2
    return -logsigmoid(0.1 * (ratios[0] - ratios[1]))


def of_answer(settings: dict[str, Any], model: Any, reference: Any, example: Example) -> Tensor:
    """The loss of kto."""
    logps_T = logps_of(model, example)
    ratio = logps_T.sum() - logps_of(reference, example).sum().detach()
    if example.sequence_numbers["label"] == (0.0,):
        return settings["kto_rejected_weight"] * (1 - torch.sigmoid(0.1 * (Z0 - ratio)))
    value = torch.sigmoid(0.1 * (ratio - Z0))
    return settings["kto_chosen_weight"] * (1 - value) - settings["pref_ftx"] * logps_T.mean()


def of_scores(settings: dict[str, Any], model: Any, reference: Any, example: Example) -> Tensor:
    """The loss of rm."""
    chosen, rejected = (
        model(torch.as_tensor(part.input_ids)[None]).logits[0, 0]
        for part in example.each_sequence()
    )
    margin = example.sequence_numbers["margin"][0]
    centered = settings["center_rewards_coefficient"] * (chosen + rejected) ** 2
    loss: Tensor = -logsigmoid(chosen - rejected - margin) + centered
    return loss


PLAIN = {"dpo": of_pair, "kto": of_answer, "rm": of_scores}


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_a_plain_loop(case: str, layout: str, llama_folder: Path):
    settings = CASES[case]
    name = settings["stage"]
    examples = MARKED if name == "kto" else PAIRS
    torch.manual_seed(0)
    model: Any = (
        AutoModelForSequenceClassification.from_pretrained(
            llama_folder, num_labels=1, pad_token_id=0
        )
        if name == "rm"
        else AutoModelForCausalLM.from_pretrained(llama_folder)
    )
    reference = AutoModelForCausalLM.from_pretrained(llama_folder)
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
            weight += 0.02 * noise
    expected: Any = sum(PLAIN[name](settings, model, reference, each) for each in examples)
    expected.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    batch = pad(examples, 0)
    if layout == "tree":
        batch = build_tree(examples, share_prefixes=True)
        install_tree_attention(model)
        install_tree_attention(reference)
        assert batch.num_computed < batch.num_tokens
    if name != "rm":
        with torch.no_grad():
            batch.token_numbers[REFERENCE] = read_logps(reference, batch).logps_N
    batch.step_numbers["kl"] = Z0

    stage = make_stage(name, **{key: value for key, value in settings.items() if key != "stage"})
    loss = stage.loss(model, batch)
    loss.total.backward()

    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        assert (weight.grad - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name
