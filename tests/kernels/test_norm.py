"""Properties of layer normalisation with its residual and ReLU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import norm

# Means and deviations of float32 values of order 1: some tens of roundings.
TOLERANCE = 1e-5


def inputs(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, residual, weight and bias."""
    g = torch.Generator().manual_seed(seed)
    x_ND, residual_ND = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    return [x_ND, residual_ND, *(torch.randn(shape[-1], generator=g).to(dtype) for _ in range(2))]


def formula(
    x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, residual_ND: Tensor | None, relu: bool
) -> Tensor:
    """The definition, term by term."""
    sum_ND = x_ND if residual_ND is None else x_ND + residual_ND
    off_ND = sum_ND - sum_ND.mean(-1, keepdim=True)
    y_ND = off_ND / (off_ND.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D + bias_D
    return y_ND.clamp_min(0) if relu else y_ND


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@given(n=st.integers(1, 9), d=st.sampled_from([1, 2, 63, 65, 512]), seed=st.integers(0, 2**31 - 1))
def test_equals_its_formula(n: int, d: int, seed: int, with_residual: bool, relu: bool) -> None:
    x_ND, residual_ND, weight_D, bias_D = inputs((n, d), seed)
    added_ND = residual_ND if with_residual else None
    got_ND = norm.layer_norm(x_ND, weight_D, bias_D, 1e-5, added_ND, relu)
    doubles = [x.double() for x in (x_ND, weight_D, bias_D)]
    want_ND = formula(*doubles, 1e-5, added_ND.double() if added_ND is not None else None, relu)
    assert got_ND.dtype == torch.float32
    # Where two columns are almost equal, their difference has the rounding of the columns.
    spread = (x_ND + residual_ND).std(-1, unbiased=False).min().clamp_min(1e-2).item() if d > 1 else 1.0
    torch.testing.assert_close(got_ND.double(), want_ND, rtol=TOLERANCE, atol=TOLERANCE / min(spread, 1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_gradients_over_many_rows_of_half_precision(dtype: torch.dtype) -> None:
    x_ND, residual_ND, weight_D, bias_D = inputs((8192, 16), 0)
    x_ND, residual_ND = (x.to(dtype).requires_grad_() for x in (x_ND, residual_ND))
    leaves = [x_ND, residual_ND, weight_D.requires_grad_(), bias_D.requires_grad_()]
    y_ND = norm.layer_norm(x_ND, weight_D, bias_D, 1e-5, residual_ND)
    assert y_ND.dtype == dtype
    grad_ND = torch.randn(y_ND.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = torch.autograd.grad(y_ND, leaves, grad_ND)
    # The sum of both inputs is rounded to their dtype before it is normalised, in the definition as in the formula.
    sum_ND = (x_ND + residual_ND).detach().double().requires_grad_()
    doubles = [sum_ND, *(x.detach().double().requires_grad_() for x in (weight_D, bias_D))]
    want = torch.autograd.grad(formula(*doubles, 1e-5, None, relu=False), doubles, grad_ND.double())
    for gradient, exact in zip((got[0], *got[2:]), want, strict=True):
        error = float((gradient.double() - exact).norm() / exact.norm())
        assert error < 3 * torch.finfo(dtype).eps  # one rounding of each element


def test_gradients_are_those_of_finite_differences() -> None:
    x_ND, residual_ND, weight_D, bias_D = (x.requires_grad_() for x in inputs((3, 5), 0, torch.float64))

    def call(x_ND: Tensor, residual_ND: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
        return norm.layer_norm(x_ND, weight_D, bias_D, 1e-5, residual_ND, relu=True)

    y_ND = call(x_ND, residual_ND, weight_D, bias_D)
    assert (y_ND == 0).any()
    assert (y_ND > 0).any()
    assert torch.autograd.gradcheck(call, (x_ND, residual_ND, weight_D, bias_D))


def test_a_residual_of_the_last_axes_repeats_over_the_first() -> None:
    x_BTD, residual_BTD, weight_D, bias_D = inputs((2, 3, 5), 0)
    for residual in (residual_BTD[0], residual_BTD[0, 0]):
        got_BTD = norm.layer_norm(x_BTD, weight_D, bias_D, 1e-5, residual)
        assert torch.equal(got_BTD, norm.layer_norm(x_BTD, weight_D, bias_D, 1e-5, residual.expand(2, 3, 5)))


@pytest.mark.parametrize("relu", [False, True])
def test_is_torchs_expression_to_the_bit(relu: bool) -> None:
    x_ND, residual_ND, weight_D, bias_D = inputs((9, 65), 1)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            got_ND = norm.layer_norm(x_ND.to(dtype), weight_D, bias_D, 1e-6, residual_ND, relu)
            layer = torch.nn.LayerNorm(65, eps=1e-6)
            layer.load_state_dict({"weight": weight_D, "bias": bias_D})
            want_ND = layer(x_ND.to(dtype) + residual_ND)
            want_ND = torch.relu(want_ND) if relu else want_ND
        assert got_ND.dtype == want_ND.dtype
        assert torch.equal(got_ND, want_ND)


@pytest.mark.parametrize("shapes", [((2, 4), (3,), (4,)), ((2, 4), (4,), (1, 4)), ((), (), ()), ((2, 0), (0,), (0,))])
def test_weights_of_another_shape_raise(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"want x \[\.\.\., D\], weight and bias \[D\], D at most 4096; got"):
        norm.layer_norm(*(torch.zeros(shape) for shape in shapes), 1e-5)


def test_rows_wider_than_a_program_holds_raise() -> None:
    with pytest.raises(ValueError, match=r"D at most 4096; got \(1, 4097\)"):
        norm.layer_norm(torch.zeros(1, 4097), torch.zeros(4097), torch.zeros(4097), 1e-5)


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (3, 2), (1, 2, 3), ()])
def test_residuals_of_another_shape_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="want a residual of x's shape or of its last axes; got"):
        norm.layer_norm(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), 1e-5, torch.zeros(shape))
