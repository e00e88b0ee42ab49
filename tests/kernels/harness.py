"""What the tests of all kernels share: the device, guarded outputs, an argued tolerance."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Float32 chains of some hundred operations stay within 2e-5 of the largest value.
TOLERANCE = 2e-5

# A CPU compiles for no interpreter; where there is a GPU, what torch.compile runs by default.
COMPILERS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)]

_MARGIN = 8192  # elements on either side of an output, and of an input's copy: more than any tile overshoots


def _poison(dtype: torch.dtype) -> float | int:
    """A value that no kernel computes."""
    if dtype.is_floating_point:
        return math.nan
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max - 5


def _is_untouched(x: Tensor) -> bool:
    value = _poison(x.dtype)
    return bool(x.isnan().all() if x.dtype.is_floating_point else (x == value).all())


@contextmanager
def guarded() -> Iterator[None]:
    """Outputs that launchers allocate begin poisoned between two margins, which nothing may write to."""
    made: list[Tensor] = []
    empty = torch.empty

    def poisoned(shape: tuple[int, ...], *, dtype: torch.dtype, device: Any) -> Tensor:
        size = math.prod(shape)
        whole = empty(size + 2 * _MARGIN, dtype=dtype, device=device).fill_(_poison(dtype))
        made.append(whole)
        return whole[_MARGIN : _MARGIN + size].view(shape)

    with mock.patch.object(torch, "empty", poisoned):
        yield
    assert made, "the launcher allocated nothing with torch.empty"
    for whole in made:
        assert _is_untouched(whole[:_MARGIN]), "a kernel wrote before its output"
        assert _is_untouched(whole[-_MARGIN:]), "a kernel wrote behind its output"


def fenced(x: Tensor) -> Tensor:
    """A copy of an input between NaN margins, so that a read outside it shows in the result."""
    whole = x.new_full((x.numel() + 2 * _MARGIN,), _poison(x.dtype))
    inner = whole[_MARGIN : _MARGIN + x.numel()].view(x.shape)
    inner.copy_(x)
    return inner


def assert_as_exact_as_eager(
    got: Tensor,
    exact: Tensor,
    eager: Tensor,
    floor: float = 0.0,
    rounded: float = 0.0,
    may_vanish: bool = False,
) -> None:
    """The kernel errs from the float64 result at most as a float32 chain, plus twice as far as eager does.

    Args:
        got: the kernel's result.
        exact: the reference on the same inputs in float64.
        eager: the reference in the dtype of the inputs; `exact` where eager errs too far to be a measure.
        floor: size of the terms that cancel in the result, where they do, in float32.
        rounded: size of the terms that the kernel rounds to a narrow dtype of the result before it adds them.
        may_vanish: whether the result may be smaller than the error allowed; a zero then passes, and is right.
    """
    assert got.shape == exact.shape
    assert got.isfinite().all(), "an output was not written, or an input was read outside its bounds"
    largest = exact.abs().amax().item()
    error = (got.double() - exact).abs().amax().item()
    allowed = TOLERANCE * (largest + floor) + 2 * (eager.double() - exact).abs().amax().item()
    # Storing in a narrow dtype rounds once, whatever eager's luck; below its normal numbers, by a constant.
    if got.dtype != torch.float32:
        info = torch.finfo(got.dtype)
        allowed += info.eps * (largest + rounded + info.smallest_normal)
    assert allowed < largest or may_vanish, f"a zero would pass: error {allowed:.3g} allowed, largest {largest:.3g}"
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def randn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal values that every device draws alike."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(DEVICE)


def rand(*shape: int, seed: int) -> Tensor:
    """Uniform values in [0, 1) that every device draws alike."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
