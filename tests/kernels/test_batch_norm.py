"""Batch normalisation: statistics that a large mean does not spoil, the ReLU's corner, NaN, running statistics."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels.backend import using
from storm_fast.kernels.batch_norm import batch_norm, kernel
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, rand, randn

MOMENTUM, EPS = 0.1, 1e-5


def last(x_NCYX: Tensor) -> Tensor:
    """A copy between margins of NaN, in channels_last."""
    return fenced(x_NCYX.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


def definition(x_NCYX: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
    """Before the activation, in the dtype of its inputs."""
    off_NCYX = x_NCYX - x_NCYX.mean((0, 2, 3), keepdim=True)
    unit_NCYX = off_NCYX / (off_NCYX.square().mean((0, 2, 3), keepdim=True) + EPS).sqrt()
    return unit_NCYX * weight_C[:, None, None] + bias_C[:, None, None]


@given(
    n=st.sampled_from([1, 3, 16]),
    c=st.sampled_from([1, 3, 32, 65]),
    sides=st.sampled_from([(2, 1), (3, 5), (8, 8)]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    silu=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_values_and_gradients_equal_the_definition(
    n: int, c: int, sides: tuple[int, int], dtype: torch.dtype, scale: float, silu: bool, seed: int
) -> None:
    x_NCYX = last(randn(n, c, *sides, seed=seed, scale=scale).to(dtype))
    grad_NCYX = last(randn(n, c, *sides, seed=seed + 1).to(dtype))
    weight_C, bias_C = fenced(randn(c, seed=seed + 2)), fenced(randn(c, seed=seed + 3))
    mean_C, var_C = fenced(randn(c, seed=seed + 4)), fenced(rand(c, seed=seed + 5))
    before = mean_C.clone(), var_C.clone()
    with guarded():
        mean, rstd = kernel.stats_fwd(x_NCYX, mean_C, var_C, MOMENTUM, EPS)
    with guarded():
        got = kernel.apply_fwd(x_NCYX, mean, rstd, weight_C, bias_C, silu)
    with guarded():
        grads = kernel.apply_bwd(grad_NCYX, x_NCYX, mean, rstd, weight_C, bias_C, silu)
    R = x_NCYX.numel() // c
    doubles = [x.double().requires_grad_() for x in (x_NCYX, weight_C, bias_C)]
    u_NCYX = definition(*doubles)
    # Through a ReLU that keeps what the kernel's kept: at its corner either side is right.
    kept_NCYX = torch.nn.functional.silu(u_NCYX) if silu else u_NCYX * (got > 0)
    wants = torch.autograd.grad(kept_NCYX, doubles, grad_NCYX.double())
    size, weight = x_NCYX.abs().max().item(), weight_C.abs().max().item()
    largest_rstd = rstd.max().item()
    spread = 2 * size * largest_rstd  # what a rounding of the values is worth among unit values
    exact_NCYX = torch.nn.functional.silu(u_NCYX) if silu else u_NCYX.relu()
    want = exact_NCYX.detach()
    assert_as_exact_as_eager(got, want, want, floor=weight * spread, may_vanish=True)
    grad = grad_NCYX.abs().max().item()
    floor = grad * weight * largest_rstd * (1 + spread) ** 2
    for mine, exact, of in zip(
        grads, wants, (floor, R * grad * (1 + spread) ** 2, R * grad * (1 + spread)), strict=True
    ):
        assert_as_exact_as_eager(mine, exact, exact, floor=of, may_vanish=True)
    exact_mean_C, exact_var_C = x_NCYX.double().mean((0, 2, 3)), x_NCYX.double().var((0, 2, 3))
    for now, old, batch in zip((mean_C, var_C), before, (exact_mean_C, exact_var_C), strict=True):
        torch.testing.assert_close(now.double(), old + MOMENTUM * (batch - old), rtol=1e-5, atol=1e-5 * (1 + size))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ordinary_results_are_far_from_zero_and_near_the_references(
    dtype: torch.dtype, activation: Literal["relu", "silu"]
) -> None:
    # Where nothing cancels no zero passes; the property above must allow for it.
    found = []
    for name in ("reference", "triton"):
        x = randn(8, 16, 6, 6, seed=0).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight_C, bias_C = (1 + rand(16, seed=1)).requires_grad_(), randn(16, seed=2).requires_grad_()
        running = torch.zeros(16, device=DEVICE), torch.ones(16, device=DEVICE)
        with using(name):  # type: ignore[arg-type]
            y = batch_norm(x, weight_C, bias_C, *running, MOMENTUM, EPS, activation)
            grads = torch.autograd.grad(y, (x, weight_C, bias_C), randn(8, 16, 6, 6, seed=3).to(dtype))
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        found.append((y.detach(), *grads, *running))
    for want, mine in zip(*found, strict=True):
        assert mine.dtype == want.dtype
        error = (mine.double() - want.double()).norm() / want.double().norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_large_mean_leaves_a_small_variance() -> None:
    # 4096 and multiples of 2^-9 are exact in float32, so nothing but the kernel rounds; mean squares would lose all.
    x_NCYX = last(4096 + (randn(32, 3, 16, 16, seed=0) * 512).round() / 512)
    running = torch.zeros(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    mean_C, rstd_C = kernel.stats_fwd(x_NCYX, *running, MOMENTUM, 1e-12)
    torch.testing.assert_close(mean_C.double(), x_NCYX.double().mean((0, 2, 3)), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        rstd_C.double(), x_NCYX.double().var((0, 2, 3), unbiased=False).rsqrt(), rtol=1e-4, atol=0
    )


def test_statistics_of_many_rows_come_from_every_program_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_PROGRAMS", 3)
    x_NCYX = last(randn(9, 40, 16, 17, seed=0) + randn(9, 40, 1, 1, seed=1))  # of 64-pixel tiles 39: 3 programs of 13
    grad_NCYX, one_C = last(randn(9, 40, 16, 17, seed=2)), torch.ones(40, device=DEVICE)
    running = torch.zeros(40, device=DEVICE), torch.zeros(40, device=DEVICE)
    with guarded():
        mean_C, rstd_C = kernel.stats_fwd(x_NCYX, *running, 1.0, EPS)
    torch.testing.assert_close(mean_C.double(), x_NCYX.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(running[1].double(), x_NCYX.double().var((0, 2, 3)), rtol=1e-5, atol=0)
    with guarded():
        _, to_weight_C, to_bias_C = kernel.apply_bwd(grad_NCYX, x_NCYX, mean_C, rstd_C, one_C, 99 * one_C, False)
    unit_NCYX = (x_NCYX - mean_C[:, None, None]) * rstd_C[:, None, None]
    torch.testing.assert_close(to_weight_C, (grad_NCYX * unit_NCYX).sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(to_bias_C, grad_NCYX.sum((0, 2, 3)), rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter: inf - inf
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_spoils_its_channel_alone(value: float, activation: Literal["relu", "silu"]) -> None:
    found = []
    for name in ("reference", "triton"):
        x = randn(4, 3, 2, 2, seed=0)
        x[1, 2, 0, 1] = value
        x.requires_grad_()
        running = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
        with using(name):  # type: ignore[arg-type]
            y = batch_norm(x, *torch.ones(2, 3, device=DEVICE), *running, MOMENTUM, EPS, activation)
            (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        found.append((y.detach(), grad, *running))
    assert found[0][0].isnan().flatten(2).any(-1).any(0).tolist() == [False, False, True]
    for want, mine in zip(*found, strict=True):
        assert torch.equal(want.isfinite(), mine.isfinite())


def test_what_does_not_fit_raises() -> None:
    x, of_C = torch.zeros(2, 3, 4, 4), [torch.zeros(3) for _ in range(4)]
    wanted = r"want x \[N, C, Y, X\], more than one value a channel, and four float32 \[C\]; got"
    for bad in (x[0], x[:1, :, :1, :1], x[:, :2]):
        with pytest.raises(ValueError, match=wanted):
            batch_norm(bad, *of_C, MOMENTUM, EPS, "relu")
    with pytest.raises(ValueError, match=wanted):
        batch_norm(x, *of_C[:3], of_C[3].double(), MOMENTUM, EPS, "relu")
    with pytest.raises(ValueError, match="want an activation of relu, silu; got 'tanh'"):
        batch_norm(x, *of_C, MOMENTUM, EPS, "tanh")  # type: ignore[arg-type]
