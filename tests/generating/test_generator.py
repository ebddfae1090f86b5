from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MambaForCausalLM,
)

from luthier.arguments.generating import GeneratingArguments
from luthier.errors import ModelError, NonFiniteError, OutOfMemory
from luthier.generating.generator import Generator, new_token_limit
from luthier.generating.request import BARE, Answer, Request, Sampling
from luthier.modeling.quirks import enable_checkpointing
from tests import tiny

TOKENIZER = tiny.make_tokenizer()
STOPS = tuple(range(60))
"""Many, so that answers end at different places."""


def make_gemma2() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "head_dim": 8, "sliding_window": 9}
    return Gemma2ForCausalLM(Gemma2Config(**(tiny.GROUPED_QUERIES | sizes)))


def make_gemma3() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "head_dim": 8, "sliding_window": 7, "num_hidden_layers": 3}
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(**(tiny.GROUPED_QUERIES | sizes | {"layer_types": kinds}))
    return Gemma3ForCausalLM(config)


def make_mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4)
    )


MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny.make_llama,
    "gpt2": tiny.make_gpt2,
    "qwen2": lambda: tiny.make_qwen2(
        use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3_moe": tiny.make_qwen3_moe,
    "gemma2": make_gemma2,
    "gemma3": make_gemma3,
    "mamba": make_mamba,
}


def sharp(name: str) -> Any:
    """A model whose answers differ, and some of which stop."""
    model = MODELS[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(1.5 if name == "mamba" else 6)
    return model


def make_prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 60, (count,), generator=generator).tolist()
    return [torch.randint(3, 400, (n,), generator=generator).tolist() for n in lengths]


def alone(model: Any, prompt: Sequence[int], stops: Sequence[int], **options: Any) -> list[int]:
    """What transformers' own generate answers to a single prompt."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": 12} | options
    new = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=list(stops),
        pad_token_id=0,
        **options,
    )
    return new[0, len(prompt) :].tolist()


def asked(prompt: Sequence[int], stops: Sequence[int] = STOPS, **settings: Any) -> Request:
    fields = {
        name: settings.pop(name)
        for name in ("stop_strings", "adapter", "num_logprobs", "allowed")
        if name in settings
    }
    return Request(prompt, Sampling(**({"max_new_tokens": 12} | settings)), stops, **fields)


def answers(generator: Generator, requests: Sequence[Request]) -> list[Answer]:
    found = dict(generator.answer(requests))
    return [found[n] for n in range(len(requests))]


def ids(found: Sequence[Answer]) -> list[list[int]]:
    return [answer.token_ids for answer in found]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_of_many_are_those_given_alone(name: str) -> None:
    model, prompts = sharp(name), make_prompts(30)
    generator = Generator(model, TOKENIZER, max_rows=6)

    found = answers(generator, [asked(prompt) for prompt in prompts])

    assert ids(found) == [alone(model, prompt, STOPS) for prompt in prompts]
    assert (generator.windows is None) == (name == "mamba")
    assert len({tuple(each) for each in ids(found)}) > 15
    assert len({len(each) for each in ids(found)}) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba"])
def test_arrivals_and_cancels_of_others_change_no_answer(name: str, seed: int) -> None:
    model, chance = sharp(name), random.Random(seed)
    prompts = make_prompts(16, seed)
    generator = Generator(model, TOKENIZER, max_rows=5, batch_size=3)
    answering = []

    for prompt in prompts:
        one = generator.submit(asked(prompt, max_new_tokens=chance.choice([3, 12, 40])))
        answering.append((one, chance.random() < 0.3))
        time.sleep(chance.random() * 0.01)
        for other, is_dropped in answering:
            if is_dropped and chance.random() < 0.5:
                other.cancel()

    for prompt, (one, is_dropped) in zip(prompts, answering, strict=True):
        limit = one.request.sampling.max_new_tokens
        whole, got = alone(model, prompt, STOPS, max_new_tokens=limit), one.answer
        assert [token.id for token in one] == got.token_ids
        if got.finish_reason == "cancelled":
            assert is_dropped
            assert got.token_ids == whole[: len(got.tokens)]
        else:
            assert got.token_ids == whole
            assert got.finish_reason == ("stop" if whole[-1] in STOPS else "length")


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_sampled_answer_depends_on_its_seed_and_not_on_its_neighbours(name: str) -> None:
    generator = Generator(sharp(name), TOKENIZER, max_rows=7)
    settings = (
        {"temperature": 2.0, "top_k": 20},
        {"temperature": 3.0, "top_p": 0.8},
        {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.3},
        {"temperature": 2.5},
        {"do_sample": False},
    )
    requests = [
        asked(prompt, **({"do_sample": True, "seed": n} | settings[n % len(settings)]))
        for n, prompt in enumerate(make_prompts(20))
    ]

    together = ids(answers(generator, requests))

    assert together == [ids(answers(generator, [each]))[0] for each in requests]
    assert together == ids(answers(generator, requests[::-1]))[::-1]


def test_one_prompt_answered_n_times_is_read_once() -> None:
    model = sharp("llama")
    read: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, named: read.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    generator, prompt = Generator(model, TOKENIZER), make_prompts(1)[0]
    requests = [asked(prompt, (), do_sample=True, temperature=2.0, seed=n) for n in range(6)]
    list(generator.answer(requests[:1]))  # what a token takes is known from here on
    del read[:]

    submitted = [generator.submit(each) for each in requests]
    found = ids([each.answer for each in submitted])

    prompts_read = sum(rows for rows, width in read if width > 1)
    assert prompts_read <= 3
    assert found == [ids(answers(generator, [each]))[0] for each in requests]
    assert len({tuple(each) for each in found}) == 6


def test_draws_follow_the_distribution_and_what_is_cut_never_comes() -> None:
    model, prompt = sharp("llama"), [5, 6, 7]
    logits = model(torch.tensor([prompt])).logits[0, -1].double() * 4
    generator = Generator(model, TOKENIZER)

    def first(count: int, **settings: Any) -> list[int]:
        options = {"do_sample": True, "temperature": 0.25, "max_new_tokens": 1} | settings
        requests = [asked(prompt, (), seed=n, **options) for n in range(count)]
        return [each[0] for each in ids(answers(generator, requests))]

    plain = torch.bincount(torch.tensor(first(2000)), minlength=400) / 2000
    likeliest = logits.softmax(-1).sort(descending=True)
    num_kept = int((likeliest.values.cumsum(0) - likeliest.values < 0.5).sum())

    # what 2,000 draws are off by on average: each count is about normal
    expected = (logits.softmax(-1) * 2 / torch.pi / 2000).sqrt().sum() / 2
    assert (plain - logits.softmax(-1)).abs().sum() / 2 < 1.3 * expected
    assert set(first(300, top_k=5)) == set(likeliest.indices[:5].tolist())
    assert set(first(500, top_p=0.5)) <= set(likeliest.indices[:num_kept].tolist())


def test_penalties_bias_and_masks_are_those_of_the_definitions() -> None:
    model, prompt = sharp("llama"), make_prompts(1, 3)[0]
    generator = Generator(model, TOKENIZER)
    plain = alone(model, prompt, ())

    def one(**settings: Any) -> list[int]:
        return ids(answers(generator, [asked(prompt, (), **settings)]))[0]

    def by_hand(change: Callable[[torch.Tensor, list[int]], None]) -> list[int]:
        new: list[int] = []
        for _ in range(12):
            logits = model(torch.tensor([[*prompt, *new]])).logits[0, -1]
            change(logits, new)
            new.append(int(logits.argmax()))
        return new

    def openai(logits: torch.Tensor, new: list[int]) -> None:
        for token in set(new):
            logits[token] -= 3.0 + 2.0 * new.count(token)

    assert one() == plain
    with torch.no_grad():
        assert one(presence_penalty=3.0, frequency_penalty=2.0) == by_hand(openai)
    assert one(repetition_penalty=1.8) == alone(model, prompt, (), repetition_penalty=1.8)
    assert one(logit_bias={17: 1e4}) == [17] * 12
    assert plain[0] not in one(logit_bias={plain[0]: -100.0})
    heard: list[list[int]] = []

    def allowed(new: Sequence[int]) -> torch.Tensor | None:
        heard.append(list(new))
        mask = torch.zeros(100, dtype=torch.bool)  # fewer than the model has
        mask[min(90 + len(new), 99)] = True
        return None if len(new) > 5 else mask

    got = one(allowed=allowed)
    assert got[:6] == [90, 91, 92, 93, 94, 95]
    assert heard == [got[:n] for n in range(12)]


def test_a_row_that_may_not_go_on_fails_alone() -> None:
    generator = Generator(sharp("llama"), TOKENIZER)
    nothing = asked([5, 6], allowed=lambda new: torch.zeros(400, dtype=torch.bool))

    bad, good = generator.submit(nothing), generator.submit(asked([5, 6, 7]))

    with pytest.raises(ModelError, match="nothing is allowed"):
        _ = bad.answer
    assert good.answer.tokens


def test_logprobs_are_the_models_own() -> None:
    model, prompt = sharp("llama"), make_prompts(1, 4)[0]
    request = asked(
        prompt, (), num_logprobs=3, do_sample=True, temperature=2.0, seed=1, logit_bias={9: 2.0}
    )

    (answer,) = answers(Generator(model, TOKENIZER), [request])

    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer.token_ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    for token, row in zip(answer.tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert [id for id, _ in token.top] == row.topk(3).indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-4
        )


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_stop_string_ends_an_answer_where_its_text_has_it(name: str) -> None:
    model, prompts = sharp(name), make_prompts(8, 5)
    generator = Generator(model, TOKENIZER)
    free = ids(answers(generator, [asked(prompt, (), max_new_tokens=30) for prompt in prompts]))
    texts = [TOKENIZER.decode(each, skip_special_tokens=True) for each in free]
    pieces = [[text[n : n + 3] for n in range(5, len(text) - 3)] for text in texts]
    stops = [
        (next((one for one in each if "\ufffd" not in one), "none"), "not there") for each in pieces
    ]

    found = answers(
        generator,
        [
            asked(prompt, (), max_new_tokens=30, stop_strings=stop)
            for prompt, stop in zip(prompts, stops, strict=True)
        ],
    )

    for answer, whole, text, (stop, _) in zip(found, free, texts, stops, strict=True):
        if stop == "none":
            assert (answer.finish_reason, answer.token_ids) == ("length", whole)
            continue
        assert (answer.finish_reason, answer.stop) == ("stop", stop)
        assert answer.token_ids == whole[: len(answer.tokens)]
        assert len(answer.tokens) == min(
            n
            for n in range(31)
            if stop in TOKENIZER.decode(whole[:n], skip_special_tokens=True).rstrip("\ufffd")
        )
        assert stop in text


def test_adapters_answer_by_name_and_the_model_is_as_before() -> None:
    base = sharp("llama")
    plain = [alone(base, prompt, STOPS) for prompt in make_prompts(9)]
    model = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=2, init_lora_weights=False, target_modules=["v_proj"]))
    model.train()
    learned = {name: each.requires_grad for name, each in model.named_parameters()}
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        model.eval()
        expected[name] = [alone(model, prompt, STOPS) for prompt in make_prompts(9)]
    model.set_adapter("default")
    for name, each in model.named_parameters():
        each.requires_grad = learned[name]
    model.train()
    generator = Generator(model, TOKENIZER, max_rows=4)
    names = (None, "default", "other", BARE)
    requests = [asked(prompt, adapter=name) for prompt in make_prompts(9) for name in names]

    found = ids(answers(generator, requests))

    assert found[0::4] == found[1::4] == expected["default"]
    assert found[2::4] == expected["other"] != plain
    assert found[3::4] == plain
    assert model.active_adapters == ["default"]
    assert {name: each.requires_grad for name, each in model.named_parameters()} == learned
    assert all(module.training for module in model.modules())
    with pytest.raises(ModelError, match="no adapter 'none'"):
        generator.submit(asked([5], adapter="none"))


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_fewer_are_answered_together_where_memory_runs_out(name: str, capsys) -> None:
    model = sharp(name)
    requests = [
        asked(prompt, do_sample=n % 2 == 0, temperature=2.0, seed=n)
        for n, prompt in enumerate(make_prompts(20))
    ]
    whole = answers(Generator(model, TOKENIZER, max_rows=8), requests)
    sizes, num_forwards = [], 0

    def check(module: Any, positional: Any, named: Any) -> None:
        nonlocal num_forwards
        num_forwards += 1
        if len(named["input_ids"]) > 3 and num_forwards > 6:
            sizes.append(len(named["input_ids"]))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check, with_kwargs=True)
    short = answers(Generator(model, TOKENIZER, max_rows=8), requests)

    assert short == whole
    assert sizes == [8, 4]
    assert capsys.readouterr().err.count("memory has run out while") == 2


def test_rows_begin_as_memory_allows() -> None:
    model, sizes = sharp("llama"), []
    model.register_forward_pre_hook(
        lambda module, args, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    generator = Generator(model, TOKENIZER)
    # keys and values in two layers of two heads of size 8 in float32
    per_token, widest = 2 * 2 * 2 * 8 * 4, 59 + 12 + 128

    def free(device: torch.device) -> int:
        return 2 * 5 * widest * per_token + 1000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luthier.generating.generator.free_memory", free)
        found = answers(generator, [asked(prompt) for prompt in make_prompts(20)])

    assert len(found) == 20
    assert 4 <= max(sizes) <= 6


def test_a_prompt_that_cannot_be_answered_alone_fails_alone() -> None:
    model = sharp("llama")

    def check(module: Any, positional: Any, named: Any) -> None:
        if named["input_ids"].shape[1] > 30:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check, with_kwargs=True)
    generator = Generator(model, TOKENIZER)
    bad, good = generator.submit(asked([5] * 40)), generator.submit(asked([5] * 20))

    with pytest.raises(OutOfMemory, match="Lower max_new_tokens"):
        _ = bad.answer
    assert good.answer.tokens
    with pytest.raises(OutOfMemory):
        list(generator.answer([asked([5] * 40)]))


def test_what_fails_in_the_model_reaches_everyone_and_the_next_is_served() -> None:
    model = sharp("llama")
    generator = Generator(model, TOKENIZER)
    hook = model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broke")))

    waiting = [generator.submit(asked(prompt)) for prompt in make_prompts(5)]

    for each in waiting:
        with pytest.raises(RuntimeError, match="broke"):
            _ = each.answer
    hook.remove()
    assert generator.submit(asked([5, 6])).answer.tokens


def test_logits_that_are_none_are_an_error() -> None:
    model = sharp("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan

    with pytest.raises(NonFiniteError, match="finite logits"):
        list(Generator(model, TOKENIZER).answer([asked([5, 6])]))


def test_a_cancelled_answer_ends_within_a_step_and_the_worker_ends_when_idle() -> None:
    model, forwards = sharp("llama"), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    generator = Generator(model, TOKENIZER)

    answering = generator.submit(asked([5, 6], (), max_new_tokens=400))
    next(iter(answering))
    answering.cancel()
    answer = answering.answer

    assert answer.finish_reason == "cancelled"
    assert 0 < len(answer.tokens) <= len(forwards) < 400
    for _ in range(100):
        if not [each for each in threading.enumerate() if each.name == "luthier-generate"]:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the worker is still there")


def test_a_program_that_ends_while_it_answers_ends_in_peace() -> None:
    program = """
from luthier.generating.generator import Generator
from tests.generating.test_generator import TOKENIZER, asked, sharp

model = sharp("llama")
model.config.max_position_embeddings = 10**6
answering = Generator(model, TOKENIZER).submit(asked([5, 6], (), max_new_tokens=10**5))
next(iter(answering))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)

    assert ended.returncode == 0, ended.stderr.decode()
    assert "Error" not in ended.stderr.decode()


def test_beams_of_a_batch_equal_beams_alone() -> None:
    model, prompts = sharp("llama"), make_prompts(8, seed=1)
    requests = [asked(prompt, (2,), num_beams=1 + n % 2 * 2) for n, prompt in enumerate(prompts)]

    found = ids(answers(Generator(model, TOKENIZER, batch_size=4), requests))

    assert found == [
        alone(model, prompt, (2,), num_beams=1 + n % 2 * 2) for n, prompt in enumerate(prompts)
    ]


def test_an_answer_never_outgrows_the_positions_of_the_model() -> None:
    small = tiny.make_gpt2(n_positions=32)
    generating = GeneratingArguments(max_new_tokens=1024)

    assert new_token_limit(generating, 30, small) == 2
    assert new_token_limit(generating, 40, small) == 0
    assert new_token_limit(generating.model_copy(update={"max_new_tokens": 5}), 3, small) == 5
    found = answers(
        Generator(small, TOKENIZER),
        [asked([5] * n, (), max_new_tokens=1024) for n in (30, 32, 40)],
    )
    assert [len(each.tokens) for each in found] == [2, 0, 0]
    assert {each.finish_reason for each in found} == {"length"}


def test_an_answer_without_a_seed_follows_torchs_own() -> None:
    generator, prompts = Generator(sharp("llama"), TOKENIZER), make_prompts(6)

    def sample() -> list[list[int]]:
        torch.manual_seed(3)
        settings = {"do_sample": True, "temperature": 4.0}
        return ids(answers(generator, [asked(prompt, **settings) for prompt in prompts]))

    assert sample() == sample()
    assert sample() != ids(answers(generator, [asked(prompt) for prompt in prompts]))


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_the_models_own_generation_settings_do_not_leak_in(name: str) -> None:
    plain, opinionated = sharp(name), sharp(name)
    opinionated.generation_config.repetition_penalty = 5.0
    opinionated.generation_config.temperature = 0.1
    opinionated.generation_config.top_k = 1
    opinionated.generation_config.eos_token_id = list(range(200))

    found = [
        ids(answers(Generator(model, TOKENIZER), [asked(prompt) for prompt in make_prompts(5)]))
        for model in (plain, opinionated)
    ]

    assert found[0] == found[1]


@pytest.mark.parametrize("use_cache", [True, False])
def test_keys_and_values_are_kept_and_the_models_state_is_restored(use_cache: bool) -> None:
    model = tiny.make_llama()
    model.config.use_cache = False
    enable_checkpointing(model, {})
    model.enable_input_require_grads()
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    widths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )

    generator = Generator(model, TOKENIZER, use_cache=use_cache)
    list(generator.answer([asked([5, 6, 7, 8], (399,), max_new_tokens=3)]))

    assert widths == ([4, 1, 1] if use_cache else [4, 5, 6])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config.use_cache is False
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
