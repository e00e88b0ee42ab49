"""Properties of the symlog two-hot regression: encode, loss, decode."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import twohot

BOUND = 20.0

# The expectation over bins sums two float32 products of at most 20, whose unit in the last place is 2^-19; the way
# through symexp and symlog errs by a few units more.
TOLERANCE = 8 * 2**-19


def symlog_values(n: int, seed: int) -> Tensor:
    """Values evenly spread over [-20, 20] in symlog space."""
    y_N = BOUND * (2 * torch.rand(n, generator=torch.Generator().manual_seed(seed)).double() - 1)
    return y_N.sign() * y_N.abs().expm1()


def double_symlog(x_N: Tensor) -> Tensor:
    x_N = x_N.double()
    return x_N.sign() * x_N.abs().log1p()


@pytest.mark.parametrize("x", [0.0, 1e-20, 1e-6, -1e-6, 1e-3, -0.5, 1.0, -1.0, 21.0, -1e4, 4.85e8, -4.85e8])
def test_symexp_undoes_symlog(x: float) -> None:
    got = twohot.symexp(twohot.symlog(torch.tensor(x))).item()
    # An error of e in symlog space becomes (1 + |x|) e, and float32 rounds log(1 + |x|) by 2^-24 of itself.
    assert abs(got - x) <= 4 * 2**-24 * (abs(x) + (1 + abs(x)) * math.log1p(abs(x)))


def test_symlog_is_odd_and_equals_its_float64_definition() -> None:
    x_N = symlog_values(1000, seed=0)
    y_N = twohot.symlog(x_N.float())
    assert y_N.dtype == torch.float32
    assert torch.equal(twohot.symlog(-x_N.float()), -y_N)
    torch.testing.assert_close(y_N.double(), double_symlog(x_N), rtol=1e-6, atol=0)


@pytest.mark.parametrize("v", [3, 255])
@given(n=st.integers(1, 65), seed=st.integers(0, 2**31 - 1))
def test_decoding_an_encoded_value_gives_it_back(v: int, n: int, seed: int) -> None:
    x_N = symlog_values(n, seed)
    got_N = twohot.decode(twohot.encode(x_N, v).log())
    torch.testing.assert_close(double_symlog(got_N), double_symlog(x_N), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("v", [3, 255])
@given(seed=st.integers(0, 2**31 - 1))
def test_encoded_rows_sum_to_one_over_at_most_two_neighbours(v: int, seed: int) -> None:
    x_NM = symlog_values(63 * 3, seed).reshape(63, 3)
    p_NMV = twohot.encode(x_NM, v)
    assert p_NMV.shape == (63, 3, v)
    assert p_NMV.dtype == torch.float32
    assert (p_NMV >= 0).all()
    torch.testing.assert_close(p_NMV.sum(-1), torch.ones(63, 3), rtol=0, atol=2**-23)
    for p_V in p_NMV.flatten(0, 1):
        positive = p_V.nonzero().flatten().tolist()
        assert len(positive) in (1, 2)
        assert positive[-1] - positive[0] == len(positive) - 1


def test_an_encoded_value_lies_between_the_bins_that_carry_it() -> None:
    x_N = symlog_values(500, seed=1)
    p_NV = twohot.encode(x_N, 255)
    spacing = 2 * BOUND / 254
    for y, p_V in zip(double_symlog(x_N).tolist(), p_NV, strict=True):
        centre_M = -BOUND + spacing * p_V.nonzero().flatten().double()
        assert ((centre_M - y).abs() <= spacing + TOLERANCE).all()


@pytest.mark.parametrize(("v", "middle"), [(3, 1), (255, 127)])
def test_zero_lies_on_the_middle_bin(v: int, middle: int) -> None:
    p_V = twohot.encode(torch.tensor(0.0), v)
    torch.testing.assert_close(p_V, torch.nn.functional.one_hot(torch.tensor(middle), v).float(), rtol=0, atol=1e-5)
    assert abs(twohot.decode(p_V.log()).item()) < TOLERANCE


@pytest.mark.parametrize("v", [3, 255])
def test_a_value_on_a_bin_is_carried_by_it_alone(v: int) -> None:
    y_V = torch.linspace(-BOUND, BOUND, v, dtype=torch.float64)
    p_VV = twohot.encode(y_V.sign() * y_V.abs().expm1(), v)
    # An error of some units of 2^-19 in symlog space is this share of a bin's width.
    share = TOLERANCE / (2 * BOUND / (v - 1))
    torch.testing.assert_close(p_VV, torch.eye(v), rtol=0, atol=share)


@pytest.mark.parametrize("v", [3, 255])
@pytest.mark.parametrize(("x", "column"), [(1e9, -1), (1e30, -1), (-1e9, 0), (-1e30, 0)])
def test_values_beyond_the_outermost_bins_clamp_to_them(v: int, x: float, column: int) -> None:
    p_V = twohot.encode(torch.tensor(x), v)
    assert p_V[column] == 1
    assert p_V.sum() == 1
    got = double_symlog(twohot.decode(p_V.log()))
    assert abs(got.item() - math.copysign(BOUND, x)) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("v", [3, 255])
def test_loss_is_the_cross_entropy_to_the_encoding(v: int, dtype: torch.dtype) -> None:
    logits_NV = (3 * torch.randn(65, v, generator=torch.Generator().manual_seed(v))).to(dtype)
    x_N = symlog_values(65, seed=2)
    place_N = (double_symlog(x_N) + BOUND) / (2 * BOUND / (v - 1))  # in bins, from the first
    lower_N = place_N.floor().long()
    share_N = place_N - lower_N
    log_p_NV = logits_NV.double() - logits_NV.double().exp().sum(-1, keepdim=True).log()
    log_p_N2 = torch.stack([log_p_NV[range(65), lower_N], log_p_NV[range(65), lower_N + 1]], -1)
    want_N = -((1 - share_N) * log_p_N2[:, 0] + share_N * log_p_N2[:, 1])
    got_N = twohot.loss(logits_NV, x_N.float())
    assert got_N.shape == (65,)
    assert got_N.dtype == torch.float32
    torch.testing.assert_close(got_N.double(), want_N, rtol=1e-5, atol=1e-3)


@given(n=st.integers(1, 9), seed=st.integers(0, 2**31 - 1))
def test_gradient_of_the_loss_is_softmax_less_encoding_and_sums_to_zero(n: int, seed: int) -> None:
    logits_NV = torch.randn(n, 63, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    x_N = symlog_values(n, seed).float()
    (grad_NV,) = torch.autograd.grad(twohot.loss(logits_NV, x_N).sum(), logits_NV)
    torch.testing.assert_close(grad_NV, (logits_NV.softmax(-1) - twohot.encode(x_N, 63)).detach())
    torch.testing.assert_close(grad_NV.sum(-1), torch.zeros(n), rtol=0, atol=1e-6)
    assert grad_NV.abs().max() > 0


def test_decode_of_equal_logits_is_zero() -> None:
    assert twohot.decode(torch.zeros(2, 255)).abs().max() < TOLERANCE


@pytest.mark.parametrize("target_shape", [(4,), (5, 1), (), (5, 3)])
def test_targets_of_another_shape_raise(target_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want logits \[\.\.\., W\], target \[\.\.\.\]; got \(5, 3\)"):
        twohot.loss(torch.zeros(5, 3), torch.zeros(target_shape))
