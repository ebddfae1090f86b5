"""the tree is taken where a probe proves it on the very model, and the padded layout elsewhere"""

from __future__ import annotations

import re
from functools import partial

import peft
import pytest
import torch
import torch.distributed as dist
import transformers

from luthier.arguments.parse import parse_dict
from luthier.errors import ModelError
from luthier.fused.fuse import fuse, unfuse
from luthier.fused.layers import FusedNorm
from luthier.modeling import selfcheck
from luthier.modeling.reads import read_nll
from luthier.training.layout import choose_layout, probe_sequences
from tests import tiny
from tests.launched import values_of_ranks
from tests.rows import make_example, pad

ROWS = [
    {"input_ids": [5, 9, 17, 4, 8, 23, 11, 6], "labels": [5, 9, 17, 4, 8, 23, 11, 6]},
    {"input_ids": [5, 9, 30, 2], "labels": [-100, -100, 30, 2]},
    {"input_ids": [7, 7, 12, 40, 3], "labels": [-100, 7, 12, 40, 3]},
]

SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def arguments(**options):
    return parse_dict(
        {
            "model_name_or_path": "tests",
            "dataset": "rows.json",
            "template": "chatml",
            "output_dir": "out",
            "do_train": True,
            **options,
        }
    )


def choose(model, dtype=torch.float32, **options):
    """In half precision as accelerate mixes it, also where a processor emulates it."""
    is_half = dtype is not torch.float32
    return choose_layout(
        model,
        arguments(**options),
        [*map(make_example, ROWS)],
        0,
        fuse=fuse,
        unfuse=unfuse,
        autocast=partial(torch.autocast, "cpu", dtype, enabled=is_half),
        dtype=dtype,
    )


def carry_state(model):
    """Has every position see the sum of all embeddings before it, as a recurrent layer would."""
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, hidden: hidden + 0.1 * hidden.cumsum(dim=1)
    )
    return model


def mix_neighbours(model):
    """Has every position see its left neighbour, as a short convolution would."""

    def mix(module, inputs, hidden):
        left = torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        return hidden + 0.1 * left

    model.get_input_embeddings().register_forward_hook(mix)
    return model


def mix_rows(model, share=0.1):
    """Has every row see the mean of the batch, which no layout can mend."""
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, hidden: hidden + share * hidden.mean(dim=(0, 1))
    )
    return model


def in_half(model, dtype):
    """As a model is loaded that was stored so."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def with_lora(model, **options):
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(model, config)


MODELS = {
    "llama": lambda: tiny.make_llama(vocab_size=97),
    "qwen2": lambda: tiny.make_qwen2(vocab_size=97),
    "gpt2": lambda: tiny.make_gpt2(vocab_size=97),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_adapted", [False, True], ids=["full", "lora"])
def test_plain_transformers_take_the_tree(name, is_adapted, capsys):
    model = MODELS[name]()

    layout = choose(with_lora(model) if is_adapted else model)

    assert layout.name == "tree"
    assert "layout: tree; checked" in capsys.readouterr().err


@pytest.mark.parametrize("plant", [carry_state, mix_neighbours])
def test_a_model_that_carries_state_along_the_sequence_is_padded(plant, capsys):
    model = plant(tiny.make_llama(vocab_size=97))

    layout = choose(model)

    said = capsys.readouterr().err
    assert layout.name == "padded"
    assert "the tree layout with fused layers differs from sequences computed alone by" in said
    assert "layout: padded; checked" in said


@pytest.mark.parametrize("plant", [carry_state, mix_neighbours])
def test_a_tree_that_was_insisted_on_and_differs_is_an_error(plant):
    model = plant(tiny.make_llama(vocab_size=97))

    with pytest.raises(ModelError, match="layout: tree"):
        choose(model, layout="tree")


def test_a_model_that_no_layout_suits_ends_the_run_with_what_was_found():
    model = mix_rows(tiny.make_llama(vocab_size=97), share=1.0)

    with pytest.raises(ModelError) as told:
        choose(model)

    lines = str(told.value).splitlines()
    assert (
        lines[0] == "this model computes something else on a batch than on each of its sequences:"
    )
    ways = ("tree layout with fused layers", "padded layout with fused layers", "padded layout")
    for line, way in zip(lines[1:4], ways, strict=True):
        assert line.startswith(f"  the {way} differs from sequences computed alone by ")
    assert "the run ends here" in lines[4]


def test_a_small_excess_of_every_layout_is_told_with_its_figure(capsys):
    model = mix_rows(tiny.make_llama(vocab_size=97), share=0.01)

    layout = choose(model)

    said = capsys.readouterr().err
    assert layout.name == "padded"
    assert re.search(
        r"the padded layout differs from sequences computed alone by \d\.\de-0\d", said
    )
    assert "may depend on the batch size" in said


def test_weights_that_are_no_numbers_end_the_run():
    model = tiny.make_llama(vocab_size=97)
    model.model.norm.weight.data[3] = float("nan")

    with pytest.raises(ModelError, match="log-probabilities that are no numbers"):
        choose(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_adapted", [False, True], ids=["full", "lora"])
def test_half_precision_is_held_against_float32(dtype, is_adapted, capsys):
    model = tiny.make_llama(vocab_size=97)

    layout = choose(with_lora(in_half(model, dtype)) if is_adapted else model, dtype)

    said = capsys.readouterr().err
    name = str(dtype).removeprefix("torch.")
    assert layout.name == "tree"
    assert re.search(r"alone: \S+e-0[67] in .*, \S+e-0[67] in gradients in float32; " + name, said)
    assert "the model's own layers by" in said


def test_sequences_that_see_each_other_a_little_are_found_in_half_precision(capsys):
    model = mix_rows(in_half(tiny.make_llama(vocab_size=97), torch.bfloat16), share=0.01)

    layout = choose(with_lora(model), torch.bfloat16)

    assert layout.name == "padded"
    assert "the tree layout with fused layers differs from" in capsys.readouterr().err


def test_half_precision_is_judged_alone_where_float32_has_no_room(monkeypatch, capsys):
    monkeypatch.setattr(selfcheck, "free_memory", lambda device: 2**16)

    layout = choose(in_half(tiny.make_llama(vocab_size=97), torch.bfloat16), torch.bfloat16)

    said = capsys.readouterr().err
    assert layout.name == "tree"
    assert "self-check: bfloat16 alone, since float32 would take 0 MiB of 0 MiB" in said
    with pytest.raises(ModelError, match="the run ends here"):
        choose(mix_rows(in_half(tiny.make_llama(97), torch.bfloat16), 3.0), torch.bfloat16)


def test_an_overflow_of_float16_is_told(capsys):
    model = in_half(tiny.make_llama(vocab_size=97), torch.float16)
    model.model.layers[0].mlp.up_proj.weight.data *= 2e4
    model.model.layers[0].mlp.down_proj.weight.data *= 2e4  # float16 ends at 65,504

    layout = choose(model, torch.float16)

    assert layout.name == "tree"
    assert "float16 is too narrow for the numbers of this model" in capsys.readouterr().err


def test_the_probe_looks_at_a_model_that_trains_without_dropout():
    model = with_lora(tiny.make_llama(vocab_size=97, attention_dropout=0.5), lora_dropout=0.5)
    model.train()
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or vars(module).get("attention_dropout"):
            module.register_forward_pre_hook(
                lambda module, inputs: seen.append(
                    (type(module).__name__, module.training, vars(module).get("attention_dropout"))
                )
            )

    assert choose(model).name == "tree"

    assert {each for each in seen if each[1]} == {("LlamaAttention", True, 0.0)}
    assert model.model.model.layers[0].self_attn.attention_dropout == 0.5
    assert model.config.attention_dropout == 0.5


def test_a_model_of_which_nothing_learns_is_looked_at_too():
    model = tiny.make_llama(**SMALL).requires_grad_(False)

    assert choose(model).name == "tree"


def test_a_padded_layout_that_was_asked_for_tries_no_tree(capsys):
    layout = choose(tiny.make_llama(vocab_size=97), layout="padded")

    assert layout.name == "padded"
    assert "tree" not in capsys.readouterr().err


def test_examples_with_dropout_share_nothing(capsys):
    layout = choose(with_lora(tiny.make_llama(vocab_size=97), lora_dropout=0.1))

    assert (layout.name, layout.shares_prefixes) == ("tree", False)
    assert "dropout" in capsys.readouterr().err


def test_prefixes_are_shared_unless_told_otherwise():
    assert choose(tiny.make_llama(vocab_size=97)).shares_prefixes
    assert not choose(tiny.make_llama(vocab_size=97), prefix_sharing="off").shares_prefixes


def test_the_probe_leaves_the_model_as_it_was():
    model = with_lora(tiny.make_llama(vocab_size=97))
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()

    choose(model)

    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


STATEFUL = {
    "StableLM": lambda: transformers.StableLmForCausalLM(transformers.StableLmConfig(**SMALL)),
    "Falcon-H1": lambda: transformers.FalconH1ForCausalLM(
        transformers.FalconH1Config(
            **SMALL, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16
        )
    ),
    "Qwen3-Next": lambda: transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(
            **SMALL,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
        )
    ),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_architectures_that_cannot_read_a_tree_are_padded_and_right(name):
    torch.manual_seed(0)
    model = STATEFUL[name]()

    layout = choose(model)

    assert layout.name == "padded"
    model.eval()
    together = read_nll(model, pad(ROWS, 0)).total
    alone = sum(read_nll(model, pad([row], 0)).total for row in ROWS)
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)


def test_the_probe_branches_within_a_shared_prefix():
    sequences = probe_sequences([row["input_ids"] for row in ROWS])

    shared = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for index, a in enumerate(sequences)
        for b in sequences[:index]
    ]
    assert len({length for length in shared if length}) >= 2
    assert all(len(each) > 1 for each in sequences)


def choose_on_a_rank(what: str):
    """What a rank takes when the model of rank 1 is another one."""
    dist.init_process_group("gloo")
    model = tiny.make_llama(vocab_size=97)
    if dist.get_rank() == 1:
        PLANTS[what](model)
    try:
        layout = choose(model)
    except (ModelError, KeyError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return layout.name, layout.has_idle_weights, isinstance(model.model.norm.forward, FusedNorm)


def stumble(model):
    """Fails in a way that no layout expects."""

    def fail(module, arguments, options):
        if options.get("position_ids") is not None:
            raise KeyError("no such string")

    model.model.register_forward_pre_hook(fail, with_kwargs=True)


def keep_an_idle_weight(model):
    model.idle = torch.nn.Parameter(torch.zeros(3))


PLANTS = {
    "state": carry_state,
    "error": stumble,
    "idle": keep_an_idle_weight,
    "nothing": lambda model: None,
}


def test_ranks_take_what_is_right_on_all_of_them():
    ranks = {what: values_of_ranks(choose_on_a_rank, 2, what) for what in PLANTS}

    assert ranks["nothing"] == [("tree", False, True)] * 2
    assert [layout for layout, *_ in ranks["state"]] == ["padded"] * 2
    assert ranks["idle"] == [("tree", True, True)] * 2
    assert ranks["error"] == [
        "ModelError: process 1 could not go on: KeyError: 'no such string'",
        "KeyError: 'no such string'",
    ]
