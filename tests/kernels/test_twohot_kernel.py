"""The two-hot kernels against their reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import twohot
from storm_fast.kernels.backend import using
from storm_fast.kernels.twohot import kernel, reference
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, randn

BOUND = 20.0
OPS = torch.ops.storm_fast

ROWS = st.sampled_from([1, 2, 63, 65])
BINS = st.sampled_from([2, 3, 63, 65, 255])
SCALES = st.sampled_from([1e-3, 1.0, 30.0])
SEEDS = st.integers(0, 2**31 - 1)

# A value near 20 in symlog space is rounded to 2^-20 before it is placed between two bins.
ROUNDING = 4 * 2**-19


def values(n: int, seed: int) -> Tensor:
    """Values over [-21, 21] in symlog space, which a few pass the outermost bins of."""
    y_N = 21 * (2 * torch.rand(n, generator=torch.Generator().manual_seed(seed)).double() - 1)
    return (y_N.sign() * y_N.abs().expm1()).float().to(DEVICE)


def exact_encode(x_N: Tensor, V: int) -> Tensor:
    """The definition in float64: each bin's weight falls linearly to 0 at its neighbours."""
    x_N = x_N.double()
    y_N = (x_N.sign() * x_N.abs().log1p()).clamp(-BOUND, BOUND)
    bin_V = torch.linspace(-BOUND, BOUND, V, dtype=torch.float64, device=x_N.device)
    return (1 - (y_N[:, None] - bin_V).abs() / (2 * BOUND / (V - 1))).clamp_min(0)


@given(n=ROWS, v=BINS, seed=SEEDS)
def test_encode_equals_its_definition(n: int, v: int, seed: int) -> None:
    x_N = fenced(values(n, seed))
    with guarded():
        p_NV = kernel.encode_fwd(x_N, v)
    assert p_NV.dtype == torch.float32
    torch.testing.assert_close(p_NV.double(), exact_encode(x_N, v), rtol=0, atol=ROUNDING / (2 * BOUND / (v - 1)))
    torch.testing.assert_close(p_NV.sum(-1), torch.ones(n, device=DEVICE), rtol=0, atol=2**-23)
    assert ((p_NV > 0).sum(-1) <= 2).all()


@pytest.mark.parametrize("v", [2, 3, 255])
def test_values_beyond_the_outermost_bins_clamp_and_zero_lies_in_the_middle(v: int) -> None:
    x_N = torch.tensor([1e9, 1e30, 3e38, -1e9, -3e38, 0.0, 1e-30, -1e-30, 1e-4], device=DEVICE)
    p_NV = kernel.encode_fwd(x_N, v)
    assert p_NV[:3, -1].tolist() == [1, 1, 1]
    assert p_NV[3:5, 0].tolist() == [1, 1]
    torch.testing.assert_close(p_NV.double(), exact_encode(x_N, v), rtol=0, atol=ROUNDING / (2 * BOUND / (v - 1)))


@given(n=ROWS, v=BINS, dtype=st.sampled_from(DTYPES), scale=SCALES, seed=SEEDS)
def test_loss_and_its_gradient_equal_the_cross_entropy(
    n: int, v: int, dtype: torch.dtype, scale: float, seed: int
) -> None:
    logits_NV, x_N = fenced(randn(n, v, seed=seed, scale=scale).to(dtype)), fenced(values(n, seed))
    grad_N = fenced(randn(n, seed=seed + 1))
    with guarded():
        loss_N, lse_N = kernel.loss_fwd(logits_NV, x_N, logits_NV.shape[1])
    with guarded():
        got_NV = kernel.loss_bwd(grad_N, logits_NV, x_N, lse_N, v)
    assert (loss_N.dtype, got_NV.dtype) == (torch.float32, dtype)

    leaf_NV = logits_NV.double().requires_grad_()
    exact_N = -(exact_encode(x_N, v) * leaf_NV.log_softmax(-1)).sum(-1)
    (exact_NV,) = torch.autograd.grad(exact_N, leaf_NV, grad_N.double())
    eager_leaf_NV = logits_NV.clone().requires_grad_()
    eager_N = reference.loss(eager_leaf_NV, x_N)
    (eager_NV,) = torch.autograd.grad(eager_N, eager_leaf_NV, grad_N)
    # A weight errs by the rounding of its place between two bins, times the difference of the two logits.
    share = ROUNDING / (2 * BOUND / (v - 1))
    spread = (logits_NV.double().amax(-1) - logits_NV.double().amin(-1)).max().item()
    assert_as_exact_as_eager(loss_N, exact_N.detach(), eager_N.detach(), floor=spread * (1 + share / 2e-5))
    assert_as_exact_as_eager(got_NV, exact_NV, eager_NV, floor=grad_N.abs().max().item())
    torch.testing.assert_close(
        got_NV.double().sum(-1), torch.zeros(n, device=DEVICE).double(), rtol=0, atol=v * 4 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_gives_none_where_the_references_does(dtype: torch.dtype) -> None:
    x_N = torch.tensor([1.5, torch.nan, 0.0, torch.inf, -torch.inf, -3.0], device=DEVICE)
    logits_NV, grad_N = randn(6, 21, seed=0).to(dtype), torch.ones(6, device=DEVICE)
    logits_NV[2, 4] = torch.nan
    grad_N[5] = torch.nan
    found = []
    for name in ("reference", "triton"):
        leaf_NV = logits_NV.clone().requires_grad_()
        with using(name):  # type: ignore[arg-type]
            loss_N, encoded_NV, decoded_N = twohot.loss(leaf_NV, x_N), twohot.encode(x_N, 21), twohot.decode(logits_NV)
            (grad_NV,) = torch.autograd.grad(loss_N, leaf_NV, grad_N)
        found.append((loss_N.detach(), encoded_NV, decoded_N, grad_NV))
    assert found[0][0].isnan().tolist() == [False, True, True, False, False, False]
    for want, got in zip(*found, strict=True):
        assert torch.equal(want.isnan(), got.isnan())
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-4, equal_nan=True)


def test_a_bin_without_weight_may_be_impossible() -> None:
    logits_NV = torch.zeros(1, 5, device=DEVICE)
    logits_NV[0, 0] = -torch.inf
    x_N = torch.zeros(1, device=DEVICE)
    loss_N, lse_N = kernel.loss_fwd(logits_NV, x_N, logits_NV.shape[1])
    torch.testing.assert_close(loss_N, torch.full((1,), 4.0, device=DEVICE).log())
    assert kernel.loss_bwd(torch.ones(1, device=DEVICE), logits_NV, x_N, lse_N, logits_NV.shape[1]).isfinite().all()


@given(n=ROWS, v=BINS, dtype=st.sampled_from(DTYPES), scale=SCALES, seed=SEEDS)
def test_decode_equals_the_expected_bin(n: int, v: int, dtype: torch.dtype, scale: float, seed: int) -> None:
    logits_NV = fenced(randn(n, v, seed=seed, scale=scale).to(dtype))
    with guarded():
        got_N = kernel.decode_fwd(logits_NV, logits_NV.shape[1])
    bin_V = torch.linspace(-BOUND, BOUND, v, dtype=torch.float64, device=DEVICE)
    want_N = (logits_NV.double().softmax(-1) * bin_V).sum(-1)
    got_y_N = got_N.double().sign() * got_N.double().abs().log1p()
    # V products of at most 20, each rounded, in float32.
    torch.testing.assert_close(got_y_N, want_N, rtol=0, atol=ROUNDING)


@given(n=ROWS, v=BINS, dtype=st.sampled_from([torch.float32, torch.bfloat16]), scale=SCALES, seed=SEEDS)
def test_gradient_of_decode_equals_that_of_the_expected_bin(
    n: int, v: int, dtype: torch.dtype, scale: float, seed: int
) -> None:
    logits_NV = fenced(randn(n, v, seed=seed, scale=scale).to(dtype))
    leaf_NV = logits_NV.double().requires_grad_()
    bin_V = torch.linspace(-BOUND, BOUND, v, dtype=torch.float64, device=DEVICE)
    y_N = (leaf_NV.softmax(-1) * bin_V).sum(-1)
    # Incoming gradients undo the growth of symexp, so that every row weighs the same.
    grad_N = fenced((randn(n, seed=seed + 1) * (-y_N.detach().abs()).exp()).float())
    with guarded():
        got_NV = kernel.decode_bwd(grad_N, logits_NV, logits_NV.shape[1])
    assert got_NV.dtype == dtype
    (exact_NV,) = torch.autograd.grad(y_N, leaf_NV, grad_N.double() * y_N.detach().abs().exp())
    with torch.no_grad():
        size_N = grad_N.double().abs() * y_N.abs().exp()
        terms_NV = size_N[:, None] * leaf_NV.softmax(-1) * (bin_V.abs() + y_N.abs()[:, None])
    # Saturated, a softmax has next to no gradient.
    assert_as_exact_as_eager(got_NV, exact_NV, exact_NV, floor=terms_NV.max().item(), may_vanish=scale > 1)


@given(n=ROWS, v=st.sampled_from([3, 63, 255]), seed=SEEDS)
def test_decoding_an_encoded_value_gives_it_back(n: int, v: int, seed: int) -> None:
    x_N = values(n, seed)
    got_N = kernel.decode_fwd(kernel.encode_fwd(x_N, v).log(), v).double()
    want_N = (x_N.double().sign() * x_N.double().abs().log1p()).clamp(-BOUND, BOUND)
    torch.testing.assert_close(got_N.sign() * got_N.abs().log1p(), want_N, rtol=0, atol=2 * ROUNDING)


def test_fewer_than_two_bins_raise() -> None:
    for call in (twohot.decode, lambda x: twohot.loss(x, x[:, 0]), lambda x: twohot.encode(x, 1)):
        with pytest.raises(ValueError, match="want at least 2 bins; got 1"):
            call(torch.zeros(3, 1))
