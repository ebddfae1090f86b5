"""what is read without logits is what plain logits say, and so are all gradients"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from luthier.batching.batch import MicroBatch
from luthier.kernels import linear_logps
from luthier.modeling import reads
from luthier.modeling.attention.interface import install_tree_attention
from luthier.modeling.heads import settle_score
from luthier.modeling.reads import (
    places_in_sequence,
    read_alone,
    read_logps,
    read_nll,
    read_values,
    sequence_logps,
)
from tests import tiny
from tests.rows import build_tree, pad

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = SMALL | {"head_dim": 8}

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: tiny.make_llama(vocab_size=97),
    "llama, tied": lambda: tiny.make_llama(vocab_size=97, tie_word_embeddings=True),
    "qwen2": lambda: tiny.make_qwen2(vocab_size=97),
    "gpt2": lambda: tiny.make_gpt2(vocab_size=97),
    "gemma2, soft-capped": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**HEADS, final_logit_softcapping=2.0)
    ),
    "gemma3, soft-capped": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**HEADS, final_logit_softcapping=2.0)
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**HEADS)),
    "cohere, multiplied": lambda: transformers.CohereForCausalLM(
        transformers.CohereConfig(**SMALL, logit_scale=3.0)
    ),
    "granite, divided": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SMALL, logits_scaling=0.3)
    ),
    "phi, with a bias": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**SMALL)),
    "hyperclovax, multiplied": lambda: transformers.HyperCLOVAXForCausalLM(
        transformers.HyperCLOVAXConfig(**HEADS, logits_scaling=3.0)
    ),
    "falcon-h1, multiplied": lambda: transformers.FalconH1ForCausalLM(
        transformers.FalconH1Config(
            **HEADS, lm_head_multiplier=3.0, mamba_d_ssm=64, mamba_n_heads=8
        )
    ),
}

ROWS = [
    {"input_ids": [5, 9, 11, 4, 8, 2], "labels": [-100, -100, 11, 4, 8, 2]},
    {"input_ids": [7, 3, 6], "labels": [-100, 3, 6]},
]


def make(name: str) -> nn.Module:
    """A model whose logits are not all alike, with biases that count."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.shape == (97, 32):
                parameter.mul_(20)
    return model


def with_lora(model: nn.Module | None = None, **options: object) -> nn.Module:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return peft.get_peft_model(model or make("llama"), config).eval()


def plain_logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits.float().flatten(0, 1)[batch.sources]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # the head multiplies other rows together, so float32 sums are blocked otherwise
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def check_reads(model: nn.Module, label_smoothing: float = 0.0) -> None:
    batch = pad(ROWS, pad_token_id=0)
    plain = nn.functional.cross_entropy(
        plain_logits(model, batch), batch.targets, reduction="sum", label_smoothing=label_smoothing
    )
    logps = -nn.functional.cross_entropy(
        plain_logits(model, batch), batch.targets, reduction="none", label_smoothing=label_smoothing
    )
    weights = torch.linspace(-1, 2, len(batch.targets))

    nll = read_nll(model, batch, label_smoothing=label_smoothing, with_accuracy=True, entropy_of=97)
    read = read_logps(model, batch, label_smoothing=label_smoothing)

    logits = plain_logits(model, batch)
    assert nll.total.item() == pytest.approx(plain.item(), rel=1e-6)
    assert nll.correct.item() == (logits.argmax(1) == batch.targets).sum()
    entropy = torch.distributions.Categorical(logits=logits.detach()).entropy().sum()
    torch.testing.assert_close(nll.entropy, entropy)
    torch.testing.assert_close(read.logps_N, logps, rtol=1e-5, atol=1e-5)
    if plain.requires_grad:
        assert_same(gradients(model, nll.total), gradients(model, plain))
        assert_same(
            gradients(model, (read.logps_N * weights).sum()),
            gradients(model, (logps * weights).sum()),
        )


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linear_logps.CHUNK_BYTES, "cpu", 2 * 97 * 4)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reads_are_those_of_plain_logits(name):
    model = make(name)

    check_reads(model)

    assert reads.logit_form(model, torch.tensor([[1, 2]])) is not None


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "cohere, multiplied"])
def test_label_smoothing_spreads_over_the_vocabulary(name):
    check_reads(make(name), label_smoothing=0.1)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 9]}},
    ],
    ids=["frozen", "adapted", "with DoRA", "saved whole", "some tokens"],
)
@pytest.mark.parametrize("name", ["llama", "llama, tied", "gemma2, soft-capped"])
def test_reads_go_through_an_adapters_head(name, options):
    model = with_lora(make(name), **options)

    check_reads(model, label_smoothing=0.1)
    with model.disable_adapter():
        check_reads(model)


@pytest.mark.usefixtures("small_chunks")
def test_a_head_keeps_a_forward_of_its_own():
    model = make("llama")
    head = model.lm_head
    head.forward = lambda hidden: nn.functional.linear(hidden, head.weight).square()

    check_reads(model)
    del head.forward
    check_reads(model)


def test_a_model_that_was_read_can_be_freed():
    model = make("cohere, multiplied")
    read_nll(model, pad(ROWS, pad_token_id=0))
    last = weakref.ref(model)

    del model
    gc.collect()

    assert last() is None


def test_a_frozen_trunk_leaves_the_gradient_of_the_head():
    model = make("phi, with a bias")
    model.model.requires_grad_(False)

    check_reads(model)

    assert model.lm_head.bias.grad is not None


def test_reads_of_a_tree_are_those_of_each_row_alone():
    shared, unlearned = list(range(10, 90)), [-100] * 79
    rows = [
        {"input_ids": [*shared, 5, 4], "labels": [*unlearned, 89, 5, 4]},
        {"input_ids": [*shared, 3, 6, 2], "labels": [*unlearned, -100, 3, 6, 2]},
        {"input_ids": [7, 1], "labels": [-100, 1]},
    ]
    model = make("llama")
    tree = build_tree(rows, share_prefixes=True)
    padded = pad(rows, pad_token_id=0)
    expected = read_nll(model, padded).total
    logps = read_logps(model, padded).logps_N
    expected_gradients = gradients(model, expected)

    install_tree_attention(model)
    total = read_nll(model, tree).total

    assert tree.num_computed < sum(len(row["input_ids"]) for row in rows)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same(gradients(model, total), expected_gradients)
    for sequence in range(3):
        torch.testing.assert_close(
            read_logps(model, tree).logps_N[tree.sequences == sequence],
            logps[padded.sequences == sequence],
        )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sums_of_sequences_are_those_of_plain_logits(name):
    model = make(name)
    rows = [ROWS[0], {"input_ids": [4, 4], "labels": [-100, -100]}, ROWS[1]]
    batch = pad(rows, pad_token_id=0)
    logits_NV = plain_logits(model, batch)
    logps_N = logits_NV.log_softmax(1).gather(1, batch.targets[:, None])[:, 0]
    expected = torch.stack([logps_N[:4].sum(), logps_N[:0].sum(), logps_N[4:].sum()])
    weights = torch.tensor([0.5, 2.0, -1.0])
    expected_gradients = gradients(model, (expected * weights).sum())

    read = sequence_logps(model, batch, with_logits=True)

    torch.testing.assert_close(read.sums_S, expected, rtol=1e-5, atol=1e-5)
    assert read.counts_S.tolist() == [4, 0, 2]
    assert places_in_sequence(batch).tolist() == [0, 1, 2, 3, 0, 1]
    assert_same(gradients(model, (read.sums_S * weights).sum()), expected_gradients)
    means = torch.stack([each.sum() for each in logits_NV.mean(1).split([4, 0, 2])])
    if "capped" in name:
        assert read.logits_S is None
    else:
        torch.testing.assert_close(read.logits_S, means, rtol=1e-5, atol=1e-5)


def make_scorer(kind: type[PreTrainedModel], **settings: object) -> PreTrainedModel:
    model = kind(make_config(kind, **settings)).eval()
    settle_score(model, tiny.make_tokenizer(), is_new=True, seed=3)
    return model


def make_config(kind: type[PreTrainedModel], **settings: object) -> PreTrainedConfig:
    made = tiny.make_gpt2 if kind is GPT2ForSequenceClassification else tiny.make_llama
    return made(vocab_size=97, num_labels=1, **settings).config


@pytest.mark.parametrize("kind", [LlamaForSequenceClassification, GPT2ForSequenceClassification])
def test_values_are_read_at_the_last_tokens(kind):
    model, batch = make_scorer(kind), pad(ROWS, pad_token_id=0)
    hidden = model.base_model(batch.input_ids, attention_mask=batch.attention_mask)[0]
    expected = model.score(torch.stack([hidden[0, 5], hidden[1, 2]]))[:, 0]
    expected_gradients = gradients(model, expected.square().sum())

    values = read_values(model, batch)

    torch.testing.assert_close(values, expected)
    assert_same(gradients(model, values.square().sum()), expected_gradients)
    for each, row in zip(values, ROWS, strict=True):
        alone = torch.tensor([row["input_ids"]])
        torch.testing.assert_close(model(alone).logits[0, 0], each)
        torch.testing.assert_close(read_alone(model, alone[0]), model_scores(model, alone)[:-1])


def model_scores(model: PreTrainedModel, ids_1T: torch.Tensor) -> torch.Tensor:
    return model.score(model.base_model(ids_1T)[0])[0, :, 0]


def test_values_of_a_tree_are_those_of_each_row_alone():
    shared = list(range(10, 40))
    rows = [{"input_ids": [*shared, *more], "labels": [-100] * 40} for more in ([5, 4], [3, 6, 2])]
    rows = [{name: each[: len(row["input_ids"])] for name, each in row.items()} for row in rows]
    model = make_scorer(LlamaForSequenceClassification)
    alone = torch.cat([read_values(model, pad([row], pad_token_id=0)) for row in rows])

    install_tree_attention(model)
    tree = build_tree(rows, share_prefixes=True)

    assert tree.num_computed < sum(len(row["input_ids"]) for row in rows)
    torch.testing.assert_close(read_values(model, tree), alone)


@pytest.mark.parametrize("precision", ["weights", "autocast"])
def test_values_are_float32_whatever_the_model_computes_in(precision):
    model = make_scorer(LlamaForSequenceClassification)
    weight = model.score.weight.detach().clone()
    if precision == "weights":
        model.base_model.bfloat16()

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        hidden: list[torch.Tensor] = []
        model.score.register_forward_hook(lambda *seen: hidden.append(seen[1][0]))
        batch = pad(ROWS, pad_token_id=0)
        values = read_values(model, batch)

    assert values.dtype == torch.float32
    states = hidden[0].flatten(0, 1)[batch.ends].float()
    torch.testing.assert_close(values, states @ weight[0], rtol=1e-6, atol=1e-7)


def test_nothing_learned_gives_zero_with_a_gradient_for_every_parameter():
    batch = pad([{"input_ids": [3, 4], "labels": [-100, -100]}], pad_token_id=0)

    for model in (make("llama"), with_lora(target_modules=["q_proj", "lm_head"])):
        for total in (
            read_nll(model, batch).total,
            read_logps(model, batch).logps_N.sum(),
            sequence_logps(model, batch).sums_S.sum(),
        ):
            found = gradients(model, total)

            assert total.item() == 0
            assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
            assert not any(gradient.any() for gradient in found.values())


def test_autocast_computes_as_it_does_for_plain_logits():
    model, batch = make("llama"), pad(ROWS, pad_token_id=0)

    with torch.autocast("cpu", torch.bfloat16):
        plain = nn.functional.cross_entropy(
            plain_logits(model, batch), batch.targets, reduction="sum"
        )
        total = read_nll(model, batch).total

    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(plain.item(), rel=1e-3)
    expected = gradients(model, plain)
    for name, gradient in gradients(model, total).items():
        # two roundings of bfloat16, 1 in 256 each, in either way to compute
        assert (gradient - expected[name]).norm() <= 0.02 * expected[name].norm()


def test_the_result_is_the_output_of_the_model():
    model, batch = make("llama"), pad(ROWS, pad_token_id=0)
    read_nll(model, batch)
    shapes: list[torch.Size] = []
    model.register_forward_hook(lambda *seen: shapes.append(seen[-1].logits.shape))

    read_nll(model, batch)
    read_logps(model, batch)
    model(batch.input_ids)

    assert shapes == [(1, 1, 1), (1, 6, 1), (2, 6, 97)]


def test_a_compiled_model_reads_the_same():
    torch._dynamo.reset()
    model, batch = make("granite, divided"), pad(ROWS, pad_token_id=0)
    model.model.layers = model.model.layers[:1]
    expected = read_nll(model, batch).total
    expected_gradients = gradients(model, expected)
    compiled = torch.compile(model, backend="eager")
    outputs: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda *seen: outputs.append(seen[-1].shape))

    for _ in range(2):
        total = read_nll(compiled, batch).total

        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert_same(gradients(model, total), expected_gradients)
    assert set(outputs) == {(1, 1, 1)}
    torch.testing.assert_close(compiled(batch.input_ids).logits, model(batch.input_ids).logits)


def test_a_model_wrapped_for_several_processes_reads_the_same(tmp_path: Path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model, batch = make("llama"), pad(ROWS, pad_token_id=0)
        expected = gradients(model, read_nll(model, batch).total)
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

        assert_same(gradients(model, read_nll(wrapped, batch).total), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_the_model_does_as_before_when_nothing_is_read():
    model, untouched = make("gemma2, soft-capped"), make("gemma2, soft-capped")
    batch = pad(ROWS, pad_token_id=0)

    read_nll(model, batch)

    torch.testing.assert_close(model(batch.input_ids).logits, untouched(batch.input_ids).logits)
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert model.generate(batch.input_ids, **settings).equal(
        untouched.generate(batch.input_ids, **settings)
    )
    assert model.config.to_dict() == untouched.config.to_dict()


def test_what_is_saved_and_copied_of_the_model_knows_nothing_of_reads(tmp_path: Path):
    model, batch = make("llama"), pad(ROWS, pad_token_id=0)
    keys = model.state_dict().keys()
    total = read_nll(model, batch).total.item()

    model.save_pretrained(tmp_path)
    twin, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        twin.lm_head.weight.zero_()

    assert model.state_dict().keys() == keys
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert read_nll(loaded, batch).total.item() == total
    assert read_nll(pickled, batch).total.item() == total
    assert read_nll(model, batch).total.item() == total
    assert read_nll(twin, batch).total.item() == pytest.approx(6 * torch.tensor(97.0).log().item())


def test_an_error_in_the_forward_pass_leaves_the_model_as_it_was():
    model, batch = make("gemma2, soft-capped"), pad(ROWS, pad_token_id=0)
    read_nll(model, batch)
    hook = model.model.layers[1].register_forward_hook(lambda *seen: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        read_nll(model, batch)
    hook.remove()

    assert model.config.final_logit_softcapping == 2.0
    assert model(batch.input_ids).logits.shape == (2, 6, 97)


def test_looking_at_a_model_draws_no_random_number_and_keeps_its_modes():
    model = with_lora(target_modules="all-linear", lora_dropout=0.5).train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    reads.logit_form(model, torch.tensor([[1, 2, 3]]))

    assert torch.get_rng_state().equal(state)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_with_trained_weights_in_float32_is_looked_at_outside_of_autocast(half):
    model = tiny.make_llama(vocab_size=97).to(half)
    model.model.norm.float()
    model.model.layers[1].float()

    form = reads.logit_form(model, torch.tensor([[1, 2, 3]]))

    assert form is not None
    assert (form.scale, form.softcap, form.num_logits) == (1, None, 97)
    assert not torch.is_autocast_enabled("cpu")


class Unusual(transformers.LlamaForCausalLM):
    """does to its logits what no setting tells"""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits * torch.linspace(0.5, 2, output.logits.shape[-1])
        return output


class Headless(transformers.LlamaForCausalLM):
    """has no head that is called"""

    def get_output_embeddings(self):
        return None


class LastOnly(transformers.LlamaForCausalLM):
    """calls its head for one position after the other"""

    def forward(self, input_ids, **inputs):
        hidden = self.model(input_ids, **inputs).last_hidden_state
        logits = torch.stack([self.lm_head(row) for row in hidden.unbind(1)], 1)
        return transformers.modeling_outputs.CausalLMOutput(
            logits=logits, hidden_states=(None, hidden)
        )


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", [Unusual, Headless, LastOnly])
def test_a_model_with_logits_of_its_own_is_asked_for_them(kind, capsys):
    torch.manual_seed(0)
    model = kind(tiny.make_llama(vocab_size=97).config).eval()

    check_reads(model, label_smoothing=0.1)

    assert f"{kind.__name__} makes its logits in a way of its own" in capsys.readouterr().err
