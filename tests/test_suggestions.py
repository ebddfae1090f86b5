"""what helps against full memory: only changes that are possible, the largest saving first"""

import pytest

from luthier.arguments.parse import parse_dict
from luthier.modeling.memory import checkpoint_activations, measure_activations
from luthier.suggestions import describe_suggestions, find_suggestions
from tests import tiny


def make_arguments(**settings):
    return parse_dict({"model_name_or_path": "m", "cutoff_len": 128, **settings}, purpose="chat")


def find(model, arguments, num_tokens=128, longest=128, autocast=None):
    return find_suggestions(
        model,
        arguments,
        num_tokens=num_tokens,
        longest=longest,
        is_padded=False,
        autocast=autocast,
    )


def names(suggestions):
    return [each.change.partition(":")[0] for each in suggestions]


def test_suggestions_come_by_their_savings():
    found = find(tiny.make_llama(), make_arguments(finetuning_type="full"), num_tokens=512)

    assert set(names(found)) == {
        "tokens_per_micro_batch",
        "gradient_checkpointing",
        "cutoff_len",
        "optim",
        "finetuning_type",
    }
    assert names(found)[0] == "tokens_per_micro_batch"
    others = [each.saved for each in found[1:]]
    assert others == sorted(others, reverse=True)
    text = describe_suggestions(found)
    assert len(text.splitlines()) == 4
    assert all(" MiB" in line for line in text.splitlines()[1:])


def test_a_reference_in_memory_may_be_read_before_instead():
    found = find_suggestions(
        tiny.make_llama(),
        make_arguments(),
        reference=2**40,
        is_padded=False,
        autocast=None,
    )

    assert found[0].change.startswith("precompute_ref: true")
    assert found[0].saved == 2**40


def test_what_is_so_already_is_not_suggested():
    model = tiny.make_llama()
    checkpoint_activations(model, use_reentrant=False)
    arguments = make_arguments(optim="adamw_8bit", lora_rank=1)

    found = find(model, arguments, num_tokens=60, longest=60)

    assert names(found) == []
    assert "smaller model" in describe_suggestions(found)


@pytest.mark.parametrize("layers", [2, 6])
def test_reckoned_activations_are_those_measured_by_about_half(layers):
    import contextlib

    model = tiny.make_llama(num_hidden_layers=layers, hidden_size=64, intermediate_size=256)
    measured = measure_activations(model, contextlib.nullcontext, is_padded=False)
    halves = [
        next(
            each.saved
            for each in find(model, make_arguments(), autocast=autocast)
            if each.change.startswith("cutoff_len")
        )
        for autocast in (None, contextlib.nullcontext)
    ]

    assert measured.of(128, 128) > 0
    assert 0.5 < halves[0] / halves[1] < 2
