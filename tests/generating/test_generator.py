from __future__ import annotations

import pytest
import torch

from luthier.arguments.generating import GeneratingArguments
from luthier.errors import OutOfMemory
from luthier.generating.generator import Generator, new_token_limit
from luthier.modeling.quirks import enable_checkpointing
from tests import tiny

STOP = (2,)


def generating(**overrides: object) -> GeneratingArguments:
    return GeneratingArguments(**({"do_sample": False, "max_new_tokens": 12} | overrides))


def make_prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 60, (count,), generator=generator).tolist()
    return [torch.randint(3, 400, (n,), generator=generator).tolist() for n in lengths]


def one_by_one(model, prompts, stop=STOP, **options):
    answers = []
    model.eval()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=list(stop),
            pad_token_id=0,
            **options,
        )[0, len(prompt) :].tolist()
        answers.append(new)
    return answers


def predict(model, tokenizer, prompts, generating, stop, *, use_cache=True, **options):
    generator = Generator(model, tokenizer, stop, use_cache=use_cache)
    return generator.answer(prompts, generating, **options)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest):
    made = tiny.make_llama() if request.param == "llama" else tiny.make_gpt2()
    with torch.no_grad():  # sharper than a fresh model, so that answers differ and some stop
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.mul_(6)
    return made


def test_batched_greedy_answers_equal_one_by_one_generation(model, tiny_tokenizer) -> None:
    prompts = make_prompts(40)
    stop = tuple(range(0, 60))  # many, so that rows of a batch end at different places

    answers = predict(model, tiny_tokenizer, prompts, generating(), stop, batch_size=7)

    alone = one_by_one(model, prompts, stop, max_new_tokens=12)
    assert answers == alone
    assert len({tuple(answer) for answer in answers}) > 20
    assert len({len(answer) for answer in answers}) > 4


def test_fewer_prompts_are_answered_together_where_memory_runs_out(tiny_tokenizer, capsys) -> None:
    model, prompts = tiny.make_llama(), make_prompts(20)
    whole = predict(model, tiny_tokenizer, prompts, generating(), STOP, batch_size=8)
    sizes = []

    def check(module, positional, named):
        sizes.append(len(named["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(check, with_kwargs=True)
    short = predict(model, tiny_tokenizer, prompts, generating(), STOP, batch_size=8)

    assert short == whole
    assert [size for size in sizes if size > 3] == [8, 4]
    assert capsys.readouterr().err.count("memory has run out while") == 2


def test_a_prompt_that_cannot_be_answered_alone_ends_the_run(tiny_tokenizer) -> None:
    model = tiny.make_llama()

    def fail(module, positional, named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(OutOfMemory, match="Lower max_new_tokens"):
        predict(model, tiny_tokenizer, make_prompts(3), generating(), STOP, batch_size=2)


def test_beams_of_a_batch_equal_beams_alone(model, tiny_tokenizer) -> None:
    prompts = make_prompts(8, seed=1)

    answers = predict(model, tiny_tokenizer, prompts, generating(), STOP, batch_size=4, num_beams=3)

    assert answers == one_by_one(model, prompts, max_new_tokens=12, num_beams=3)


def test_max_length_counts_the_prompt_of_each_row_and_not_its_padding(
    model, tiny_tokenizer
) -> None:
    prompts = [[5] * 30, [7] * 3, [9] * 3, [11] * 40]

    answers = predict(
        model,
        tiny_tokenizer,
        prompts,
        generating(max_new_tokens=0, max_length=34),
        (399,),
        batch_size=4,
    )

    assert [len(answer) for answer in answers] == [4, 31, 31, 0]


def test_an_answer_never_outgrows_the_positions_of_the_model() -> None:
    small = tiny.make_gpt2(n_positions=32)

    assert new_token_limit(generating(max_new_tokens=1024), 30, small) == 2
    assert new_token_limit(generating(max_new_tokens=1024), 40, small) == 0
    assert new_token_limit(generating(max_new_tokens=5), 3, small) == 5


def test_sampling_differs_from_greedy_and_follows_the_seed(tiny_tokenizer) -> None:
    model = tiny.make_llama()
    prompts = make_prompts(6)
    settings = generating(do_sample=True, temperature=2.0, top_p=1.0, top_k=0)

    def sample() -> list[list[int]]:
        torch.manual_seed(3)
        return predict(model, tiny_tokenizer, prompts, settings, STOP, batch_size=3)

    first, second = sample(), sample()
    greedy = predict(model, tiny_tokenizer, prompts, generating(), STOP, batch_size=3)

    assert first == second
    assert first != greedy


def test_the_models_own_generation_settings_do_not_leak_in(tiny_tokenizer) -> None:
    prompts = make_prompts(5)
    plain = tiny.make_llama()
    opinionated = tiny.make_llama()
    opinionated.generation_config.repetition_penalty = 5.0
    opinionated.generation_config.temperature = 0.1
    opinionated.generation_config.top_k = 1

    answers = [
        predict(model, tiny_tokenizer, prompts, generating(), STOP, batch_size=5)
        for model in (plain, opinionated)
    ]

    assert answers[0] == answers[1]


@pytest.mark.parametrize("use_cache", [True, False])
def test_keys_and_values_are_kept_and_the_models_state_is_restored(
    tiny_tokenizer, use_cache: bool
) -> None:
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

    predict(
        model,
        tiny_tokenizer,
        [[5, 6, 7, 8]],
        generating(max_new_tokens=3),
        (399,),
        batch_size=1,
        use_cache=use_cache,
    )

    assert widths == ([4, 1, 1] if use_cache else [4, 5, 6])
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config.use_cache is False
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
