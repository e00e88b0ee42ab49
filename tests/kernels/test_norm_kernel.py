"""The layer normalisation kernels against their reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import backend, norm
from storm_fast.kernels.backend import using
from storm_fast.kernels.norm import kernel, reference
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, randn

OPS = torch.ops.storm_fast
EPS = 1e-5

ROWS = st.sampled_from([1, 2, 63, 65])
WIDTHS = st.sampled_from([1, 2, 3, 63, 65, 130, 512, 1000])
SCALES = st.sampled_from([1e-3, 1.0, 30.0])
SEEDS = st.integers(0, 2**31 - 1)
KINDS = st.sampled_from(DTYPES)


def definition(sum_ND: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """In the dtype of its inputs, before the ReLU."""
    off_ND = sum_ND - sum_ND.mean(-1, keepdim=True)
    return off_ND / (off_ND.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D + bias_D


def gradients(dtype: torch.dtype, kept_ND: Tensor, grad_ND: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Of sum, weight and bias in `dtype`, through a ReLU that keeps what the kernel's kept."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    y_ND = definition(*leaves, EPS) * kept_ND
    return torch.autograd.grad(y_ND, leaves, grad_ND.to(dtype))


@given(
    n=ROWS, d=WIDTHS, kind=KINDS, other=st.none() | KINDS, out=KINDS, relu=st.booleans(), scale=SCALES,
    repeats=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_values_and_gradients_equal_the_definition(
    n: int,
    d: int,
    kind: torch.dtype,
    other: torch.dtype | None,
    out: torch.dtype,
    relu: bool,
    scale: float,
    repeats: bool,
    seed: int,
) -> None:
    x_ND = fenced(randn(n, d, seed=seed, scale=scale).to(kind))
    weight_D, bias_D = fenced(randn(d, seed=seed + 1)), fenced(randn(d, seed=seed + 2))
    grad_ND = fenced(randn(n, d, seed=seed + 3).to(out))
    M = n // 3 if repeats and n % 3 == 0 else n
    residual_MD = None if other is None else fenced(randn(M, d, seed=seed + 4, scale=scale).to(other))
    with guarded():
        got_ND, mean_N, rstd_N = kernel.layer_norm_fwd(x_ND, residual_MD, weight_D, bias_D, EPS, relu, out)
    with guarded():
        to_x_ND, to_residual_ND, to_weight_D, to_bias_D = kernel.layer_norm_bwd(
            grad_ND, x_ND, residual_MD, weight_D, bias_D, mean_N, rstd_N, relu
        )
    assert (got_ND.dtype, mean_N.dtype, rstd_N.dtype) == (out, torch.float32, torch.float32)

    # Sums of two inputs are exact in float64, and eager is float32: the kernel rounds its inputs nowhere.
    sum_ND = x_ND.double() if residual_MD is None else x_ND.double() + residual_MD.double().repeat(n // M, 1)
    exact_ND = definition(sum_ND, weight_D.double(), bias_D.double(), EPS)
    eager_ND = definition(sum_ND.float(), weight_D, bias_D, EPS)
    # A float32 sum is rounded in its last place, and so is the mean that is subtracted; what normalises enlarges both.
    largest_rstd, largest_weight = rstd_N.max().item(), weight_D.abs().max().item()
    spread = sum_ND.abs().max().item() * largest_rstd
    cut = (lambda y_ND: y_ND.clamp_min(0)) if relu else (lambda y_ND: y_ND)
    assert_as_exact_as_eager(
        got_ND, cut(exact_ND), cut(eager_ND).to(out), floor=largest_weight * spread, may_vanish=relu or d < 3
    )
    torch.testing.assert_close(
        mean_N.double(), sum_ND.mean(-1), rtol=0, atol=2e-6 * sum_ND.abs().max().clamp_min(1e-30).item()
    )

    kept_ND = got_ND > 0 if relu else torch.ones_like(got_ND)
    wants = gradients(torch.float64, kept_ND, grad_ND, sum_ND, weight_D, bias_D)
    eagers = gradients(torch.float32, kept_ND, grad_ND, sum_ND, weight_D, bias_D)
    # Backward's terms, which cancel in a row: the gradient of the unit values, and what is taken off along them.
    size = grad_ND.abs().max().item()
    to_sum = size * largest_weight * largest_rstd * (1 + spread)
    assert_as_exact_as_eager(to_x_ND, wants[0], eagers[0].to(kind), floor=to_sum, may_vanish=True)
    if other is not None and other != kind:
        assert to_residual_ND.dtype == other
        assert_as_exact_as_eager(to_residual_ND, wants[0], eagers[0].to(other), floor=to_sum, may_vanish=True)
    else:
        assert to_residual_ND.shape == (0, d)
    # Sums over all rows, in which a term may be any share of the largest.
    assert (to_weight_D.dtype, to_bias_D.dtype) == (torch.float32, torch.float32)
    assert_as_exact_as_eager(to_weight_D, wants[1], eagers[1], floor=n * size * spread, may_vanish=True)
    assert_as_exact_as_eager(to_bias_D, wants[2], eagers[2], floor=n * size, may_vanish=True)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ordinary_gradients_are_far_from_zero_and_near_the_definition(dtype: torch.dtype, relu: bool) -> None:
    # Where nothing cancels no zero passes; the property above must allow for it.
    x_ND, residual_ND = (randn(65, 63, seed=seed).to(dtype) for seed in (0, 1))
    weight_D, bias_D, grad_ND = randn(63, seed=2), randn(63, seed=3), randn(65, 63, seed=4).to(dtype)
    y_ND, mean_N, rstd_N = kernel.layer_norm_fwd(x_ND, residual_ND, weight_D, bias_D, EPS, relu, dtype)
    got = kernel.layer_norm_bwd(grad_ND, x_ND, residual_ND, weight_D, bias_D, mean_N, rstd_N, relu)
    kept_ND, sum_ND = (y_ND > 0 if relu else torch.ones_like(y_ND)), x_ND.double() + residual_ND.double()
    wants = gradients(torch.float64, kept_ND, grad_ND, sum_ND, weight_D, bias_D)
    eagers = gradients(torch.float32, kept_ND, grad_ND, sum_ND, weight_D, bias_D)
    for mine, want, eager in zip((got[0], *got[2:]), wants, eagers, strict=True):
        assert_as_exact_as_eager(mine, want, eager)


@given(n=st.sampled_from([1, 3]), d=st.sampled_from([63, 512, 2047, 4096]), seed=SEEDS)
def test_a_large_mean_leaves_a_small_variance(n: int, d: int, seed: int) -> None:
    # 4096 and multiples of 2^-11 are exact in float32, so nothing but the kernel rounds. The mean of squares would lose
    # all: 2^24 has no bits below 1, and the variance is 1.
    x_ND = 4096 + (randn(n, d, seed=seed) * 2048).round() / 2048
    one_D, zero_D = torch.ones(d, device=DEVICE), torch.zeros(d, device=DEVICE)
    got_ND = kernel.layer_norm_fwd(x_ND, None, one_D, zero_D, EPS, False, torch.float32)[0]
    want_ND = definition(x_ND.double(), one_D.double(), zero_D.double(), EPS)
    # A tree of 12 additions, each of which may round the mean by half a unit in the last place of 4096, 2^-12.
    torch.testing.assert_close(got_ND.double(), want_ND, rtol=1e-4, atol=12 * 2**-12)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.25])
def test_rows_without_variance_are_the_bias(eps: float) -> None:
    x_ND = torch.full((3, 65), 0.5, device=DEVICE)
    weight_D, bias_D, grad_ND = randn(65, seed=0), randn(65, seed=1), randn(3, 65, seed=2)
    y_ND, mean_N, rstd_N = kernel.layer_norm_fwd(x_ND, None, weight_D, bias_D, eps, False, torch.float32)
    assert torch.equal(y_ND, bias_D.expand(3, 65))
    torch.testing.assert_close(rstd_N, torch.full_like(rstd_N, eps**-0.5))
    to_x_ND, _, to_weight_D, to_bias_D = kernel.layer_norm_bwd(
        grad_ND, x_ND, None, weight_D, bias_D, mean_N, rstd_N, False
    )
    level_ND = grad_ND * weight_D
    torch.testing.assert_close(to_x_ND, (level_ND - level_ND.mean(-1, keepdim=True)) * eps**-0.5, rtol=1e-4, atol=1e-3)
    assert torch.equal(to_weight_D, torch.zeros_like(to_weight_D))
    torch.testing.assert_close(to_bias_D, grad_ND.sum(0))


def test_gradients_of_many_rows_sum_over_every_program_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_PROGRAMS", 3)  # 17 tiles of 16 rows: 6 steps each, the last program's beyond the end
    n, d = 16 * 16 + 5, 65
    x_ND, grad_ND, weight_D, bias_D = randn(n, d, seed=0), randn(n, d, seed=1), randn(d, seed=2), randn(d, seed=3)
    _, mean_N, rstd_N = kernel.layer_norm_fwd(x_ND, None, weight_D, bias_D, EPS, False, torch.float32)
    with guarded():
        got = kernel.layer_norm_bwd(fenced(grad_ND), fenced(x_ND), None, weight_D, bias_D, mean_N, rstd_N, False)
    wants = gradients(torch.float64, torch.ones_like(x_ND), grad_ND, x_ND, weight_D, bias_D)
    for mine, want in zip((got[0], *got[2:]), wants, strict=True):
        assert_as_exact_as_eager(mine, want, want)


def test_no_rows_give_none_and_gradients_of_zero() -> None:
    x_ND, weight_D = torch.zeros(0, 5, device=DEVICE), torch.ones(5, device=DEVICE)
    y_ND, mean_N, rstd_N = kernel.layer_norm_fwd(x_ND, None, weight_D, weight_D, EPS, True, torch.float32)
    assert y_ND.shape == (0, 5)
    got = kernel.layer_norm_bwd(y_ND, x_ND, None, weight_D, weight_D, mean_N, rstd_N, True)
    assert torch.equal(got[2], torch.zeros_like(weight_D))
    assert torch.equal(got[3], torch.zeros_like(weight_D))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter: inf - inf
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_no_number_spoils_its_row_alone(relu: bool) -> None:
    x_ND, weight_D = randn(5, 7, seed=0), torch.ones(7, device=DEVICE)
    x_ND[1, 2], x_ND[3, 0] = torch.nan, torch.inf
    found = []
    for name in ("reference", "triton"):
        leaf_ND = x_ND.clone().requires_grad_()
        with using(name):  # type: ignore[arg-type]
            y_ND = norm.layer_norm(leaf_ND, weight_D, 0 * weight_D, EPS, None, relu)
            (grad_ND,) = torch.autograd.grad(y_ND, leaf_ND, randn(5, 7, seed=1))
        found.append((y_ND.detach(), grad_ND))
    assert found[0][0].isnan().any(-1).tolist() == [False, True, False, True, False]
    for want, got in zip(*found, strict=True):
        assert torch.equal(want.isnan(), got.isnan())
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kinds", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
def test_the_public_function_equals_the_reference(depth: int, kinds: tuple[torch.dtype, torch.dtype]) -> None:
    x_BTD, residual = randn(2, 3, 21, seed=0).to(kinds[0]), randn(2, 3, 21, seed=1).to(kinds[1])
    residual = residual[(0,) * (3 - depth)]
    found = []
    for name in ("reference", "triton"):
        leaves = [x.clone().requires_grad_() for x in (x_BTD, residual, randn(21, seed=2), randn(21, seed=3))]
        with using(name):  # type: ignore[arg-type]
            y_BTD = norm.layer_norm(leaves[0], leaves[2], leaves[3], EPS, leaves[1], relu=True)
            grads = torch.autograd.grad(y_BTD, leaves, randn(2, 3, 21, seed=4).to(y_BTD.dtype))
        found.append((y_BTD.detach(), *grads))
    narrow = 8 * torch.finfo(kinds[0]).eps  # sums, results and incoming gradients of the reference, rounded
    for want, got in zip(*found, strict=True):
        assert got.shape == want.shape
        scale = want.abs().max().item()
        torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=max(narrow, 1e-5) * scale)
    for leaf, grad in zip((x_BTD, residual), found[1][1:3], strict=True):
        assert grad.dtype == leaf.dtype


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("narrows", [False, True])
def test_leaves_autocasts_dtype_where_that_narrows_and_the_sums_elsewhere(
    narrows: bool, name: backend.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "NARROWED", (DEVICE,) if narrows else ())
    x_ND, weight_D = randn(3, 5, seed=0), torch.ones(5, device=DEVICE)
    for is_autocast in (False, True):
        with using(name), torch.autocast(DEVICE, torch.bfloat16, enabled=is_autocast):
            for kind, other in [(k, o) for k in DTYPES for o in (*DTYPES, None)]:
                residual_ND = None if other is None else x_ND.to(other)
                y_ND = norm.layer_norm(x_ND.to(kind), weight_D, weight_D, EPS, residual_ND, relu=True)
                wide = kind if other is None else torch.promote_types(kind, other)
                assert y_ND.dtype == (torch.bfloat16 if narrows and is_autocast else wide)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_on_a_cpu_the_reference_is_pytorchs_own_expression_to_the_bit(is_autocast: bool) -> None:
    x_ND, residual_ND, weight_D = (randn(3, 5, seed=s).cpu() for s in range(3))
    for kind, other in [(k, o) for k in DTYPES for o in DTYPES]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            sum_ND = x_ND.to(kind) + residual_ND.to(other)
            want_ND = torch.nn.functional.layer_norm(sum_ND, (5,), weight_D[0], weight_D[1], EPS)
            got_ND = reference.layer_norm(x_ND.to(kind), weight_D[0], weight_D[1], EPS, residual_ND.to(other))
        assert got_ND.dtype == want_ND.dtype
        assert torch.equal(got_ND, want_ND)


@pytest.mark.usefixtures("triton")
def test_runs_repeat_to_the_bit_and_read_any_strides() -> None:
    x_ND, residual_ND = randn(6, 130, seed=0), randn(6, 130, seed=1)
    weight_D, bias_D, grad_ND = randn(130, seed=2), randn(130, seed=3), randn(6, 130, seed=4)
    found = []
    for strided in (False, False, True):
        lay = (lambda x: x.T.contiguous().T) if strided else torch.clone
        leaves = [lay(x).requires_grad_() for x in (x_ND, residual_ND)] + [
            x.clone().requires_grad_() for x in (weight_D, bias_D)
        ]
        y_ND = norm.layer_norm(leaves[0], leaves[2], leaves[3], EPS, leaves[1], relu=True)
        found.append((y_ND.detach(), *torch.autograd.grad(y_ND, leaves, lay(grad_ND))))
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.usefixtures("triton")
def test_a_residual_without_gradient_gets_none() -> None:
    x_ND, weight_D = randn(4, 5, seed=0).requires_grad_(), torch.ones(5, device=DEVICE)
    residual_D = randn(5, seed=1)
    y_ND = norm.layer_norm(x_ND, weight_D, weight_D, EPS, residual_D)
    y_ND.sum().backward()
    assert x_ND.grad is not None
    assert residual_D.grad is None
