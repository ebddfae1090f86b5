"""head and softmax in chunks against logits in one piece, and their memory"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.kernels import linear_logps as kernel

FORMS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "soft-capped": {"softcap": 2.0},
    "scaled and soft-capped": {"scale": 1.7, "softcap": 2.5},
}


def linear_nll(hidden, weight, targets, bias=None, **options):
    return kernel.linear_nll(hidden, weight, targets, bias, kernel.Settings(**options))


def linear_logps(hidden, weight, targets, bias=None, **options):
    return kernel.linear_logps(hidden, weight, targets, bias, kernel.Settings(**options))


def make_inputs(
    reads: int = 13,
    vocabulary: int = 29,
    hidden: int = 8,
    *,
    dtype: torch.dtype = torch.float64,
    with_bias: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """hidden, weight, targets, bias; the float ones with a gradient"""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.7
        return made.to(dtype).requires_grad_()

    targets = torch.randint(vocabulary, (reads,), generator=generator)
    bias = normal(vocabulary) if with_bias else None
    return normal(reads, hidden), normal(vocabulary, hidden), targets, bias


def plain_logits(hidden, weight, bias, scale=1.0, softcap=None):
    logits = nn.functional.linear(hidden, weight, bias) * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def gradients_of(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def assert_close(found: list[Tensor], expected: list[Tensor], relative: float) -> None:
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == plain.dtype
        difference = (ours.double() - plain.double()).norm()
        assert difference <= relative * plain.double().norm() + 1e-30


# sums in float32 are blocked otherwise in chunks; float64 shows that the formula is the same
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("chunk_bytes", [1, 3000, None], ids=["one row", "some rows", "all rows"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("form", FORMS)
def test_the_sum_and_all_its_gradients_are_those_of_plain_logits(
    form, label_smoothing, chunk_bytes, dtype, relative
):
    hidden, weight, targets, bias = make_inputs(dtype=dtype)
    inputs = [hidden, weight, bias]
    plain = nn.functional.cross_entropy(
        plain_logits(hidden, weight, bias, **FORMS[form]),
        targets,
        reduction="sum",
        label_smoothing=label_smoothing,
    )

    ours = linear_nll(
        hidden,
        weight,
        targets,
        bias=bias,
        label_smoothing=label_smoothing,
        chunk_bytes=chunk_bytes,
        **FORMS[form],
    ).total

    assert ours.item() == pytest.approx(plain.item(), rel=relative)
    assert_close(gradients_of(ours * 0.37, inputs), gradients_of(plain * 0.37, inputs), relative)


@pytest.mark.parametrize("chunk_bytes", [1, None], ids=["one row", "all rows"])
@pytest.mark.parametrize("form", FORMS)
def test_log_probabilities_take_any_gradient_back(form, chunk_bytes):
    hidden, weight, targets, bias = make_inputs()
    inputs, weights = [hidden, weight, bias], torch.linspace(-1, 2, 13, dtype=torch.float64)
    logits = plain_logits(hidden, weight, bias, **FORMS[form])
    plain = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]

    ours = linear_logps(
        hidden, weight, targets, bias=bias, chunk_bytes=chunk_bytes, **FORMS[form]
    ).logps_N

    torch.testing.assert_close(ours, plain)
    assert_close(
        gradients_of((ours * weights).sum(), inputs),
        gradients_of((plain * weights).sum(), inputs),
        1e-13,
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_slopes_of_the_values(form):
    hidden, weight, targets, bias = make_inputs(5, 7, 3)

    def logps(*inputs: Tensor) -> Tensor:
        hidden, weight, bias = inputs
        return linear_logps(
            hidden, weight, targets, bias=bias, chunk_bytes=120, **FORMS[form]
        ).logps_N

    assert torch.autograd.gradcheck(logps, (hidden, weight, bias))


@settings(deadline=None, max_examples=60)
@given(
    reads=st.integers(0, 20),
    vocabulary=st.integers(1, 40),
    chunk_bytes=st.integers(1, 5000),
    with_bias=st.booleans(),
    seed=st.integers(0, 5),
)
def test_any_number_of_reads_and_any_chunk_give_the_plain_sum(
    reads, vocabulary, chunk_bytes, with_bias, seed
):
    hidden, weight, targets, bias = make_inputs(reads, vocabulary, with_bias=with_bias, seed=seed)
    inputs = [each for each in (hidden, weight, bias) if each is not None]
    plain = nn.functional.cross_entropy(
        plain_logits(hidden, weight, bias), targets, reduction="sum"
    )
    expected = gradients_of(plain, inputs)

    fused = linear_nll(hidden, weight, targets, bias=bias, chunk_bytes=chunk_bytes).total
    recomputed = -linear_logps(
        hidden, weight, targets, bias=bias, chunk_bytes=chunk_bytes
    ).logps_N.sum()

    for ours in (fused, recomputed):
        torch.testing.assert_close(ours, plain)
        for found, wanted in zip(gradients_of(ours, inputs), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_accuracy_and_entropy_come_from_the_same_chunks():
    hidden, weight, targets, bias = make_inputs()
    logits = plain_logits(hidden, weight, bias)
    targets[:4] = logits[:4].argmax(1)
    likeliest = logits.argmax(1) == targets
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    options = {
        "bias": bias,
        "chunk_bytes": 1000,
        "with_correct": True,
        "entropy_of": weight.shape[0],
    }

    total, correct, summed = linear_nll(hidden, weight, targets, **options)
    _, correct_N, entropy_N, _ = linear_logps(hidden, weight, targets, **options)

    assert correct.item() == likeliest.sum().item() >= 4
    assert correct_N.tolist() == likeliest.tolist()
    torch.testing.assert_close(entropy_N, entropy)
    torch.testing.assert_close(summed, entropy.sum())
    assert total.requires_grad
    assert not summed.requires_grad
    assert not entropy_N.requires_grad


def test_a_token_that_is_ruled_out_spoils_neither_loss_nor_entropy():
    hidden, weight, targets, _ = make_inputs(with_bias=False)
    bias = torch.zeros(29, dtype=torch.float64)
    bias[3] = -torch.inf
    targets[targets == 3] = 4

    nll = linear_nll(hidden, weight, targets, bias=bias, entropy_of=weight.shape[0])

    assert torch.isfinite(nll.total)
    assert torch.isfinite(nll.entropy)
    assert torch.isfinite(torch.autograd.grad(nll.total, hidden)[0]).all()


def test_a_hopeless_target_has_a_finite_loss():
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[300.0], [0.0]])

    nll = linear_nll(hidden, weight, torch.tensor([1]))

    assert nll.total.item() == 300


@pytest.mark.parametrize("function", [linear_nll, linear_logps])
def test_without_gradients_nothing_is_kept(function):
    hidden, weight, targets, bias = make_inputs()

    with torch.no_grad():
        value = function(hidden, weight, targets, bias=bias)[0]
    of_frozen = function(hidden.detach(), weight.detach(), targets)[0]

    assert value.grad_fn is None
    assert of_frozen.grad_fn is None


def test_a_frozen_head_gets_no_gradient_and_a_frozen_trunk_neither():
    hidden, weight, targets, _ = make_inputs()

    linear_nll(hidden, weight.detach(), targets).total.backward()
    assert hidden.grad is not None

    linear_nll(hidden.detach(), weight, targets).total.backward()
    assert weight.grad is not None


def test_a_second_backward_pass_through_the_same_sum_is_refused():
    hidden, weight, targets, _ = make_inputs()
    total = linear_nll(hidden, weight, targets).total

    total.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="inplace"):
        total.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_as_close_to_the_truth_as_the_plain_way(form, dtype):
    hidden, weight, targets, bias = make_inputs(40, 29, 16, dtype=dtype)
    exact = [each.detach().double().requires_grad_() for each in (hidden, weight, bias)]
    truth = nn.functional.cross_entropy(
        plain_logits(*exact, **FORMS[form]), targets, reduction="sum"
    )
    wanted = gradients_of(truth, exact)
    inputs = [hidden, weight, bias]
    plain = nn.functional.cross_entropy(
        plain_logits(*inputs, **FORMS[form]).float(), targets, reduction="sum"
    )

    ours = linear_nll(hidden, weight, targets, bias=bias, chunk_bytes=2000, **FORMS[form]).total

    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(truth.item(), rel=4 * torch.finfo(dtype).eps)
    for mine, theirs, true in zip(
        gradients_of(ours, inputs), gradients_of(plain, inputs), wanted, strict=True
    ):
        assert mine.dtype == dtype
        error, plain_error = (mine - true).norm(), (theirs - true).norm()
        assert error <= 1.2 * plain_error + torch.finfo(dtype).eps * true.norm()


@pytest.mark.parametrize("function", [linear_nll, linear_logps])
def test_autocast_makes_the_products_in_its_dtype_and_gradients_in_the_weights(function):
    hidden, weight, targets, bias = make_inputs(40, 29, 16, dtype=torch.float32)
    inputs = [hidden, weight, bias]

    with torch.autocast("cpu", torch.bfloat16):
        plain = nn.functional.cross_entropy(
            nn.functional.linear(hidden, weight, bias), targets, reduction="sum"
        )
        value = function(hidden, weight, targets, bias=bias, chunk_bytes=2000)[0]
    ours = value.sum().abs()

    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(plain.item(), rel=1e-3)
    # bfloat16 has 8 bits: products and their gradients are rounded to 1 in 256
    assert_close(gradients_of(ours, inputs), gradients_of(plain, inputs), 1e-2)


def test_float16_gradients_survive_with_the_loss_scale():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4, generator=generator).half().requires_grad_()
    weight = torch.randn(4096, 4, generator=generator).half().requires_grad_()
    targets, scale = torch.tensor([7]), 2.0**12
    exact = weight.detach().double().requires_grad_()
    truth = nn.functional.cross_entropy(hidden.detach().double() @ exact.T, targets)

    total = linear_nll(hidden, weight, targets).total * scale

    (found,), (wanted,) = gradients_of(total, [weight]), gradients_of(truth, [exact])
    assert_close([found.double() / scale], [wanted], 2e-3)


class Largest(TorchDispatchMode):
    """remembers the largest tensor that any operation gives"""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.num_elements = max(self.num_elements, each.numel())
        return result


@pytest.mark.parametrize("function", [linear_nll, linear_logps])
def test_no_tensor_is_larger_than_the_budget(function):
    hidden, weight, targets, _ = make_inputs(600, 1000, 4, dtype=torch.float32, with_bias=False)
    rows = 16

    with Largest() as largest:
        function(hidden, weight, targets, chunk_bytes=rows * 1000 * 4)[0].sum().backward()

    assert rows * 1000 // 2 < largest.num_elements <= rows * 1000


@given(st.integers(0, 10_000), st.integers(1, 2**20), st.integers(1, 2**27))
def test_chunks_are_equal_and_within_the_budget(num_reads, bytes_of_row, chunk_bytes):
    chosen = kernel.Settings(chunk_bytes=chunk_bytes)

    rows = chosen.rows_of_chunk(num_reads, bytes_of_row, torch.device("cpu"))

    assert (rows == 0) == (num_reads == 0)
    assert rows <= max(chunk_bytes // bytes_of_row, 1)
    if rows:
        num_chunks = -(-num_reads // rows)
        assert num_chunks * rows - num_reads < num_chunks
