"""Bias and ReLU behind a convolution: the kernel against the definition, and the two within a convolution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels.backend import using
from storm_fast.kernels.conv_relu import conv_relu, kernel, reference
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, randn

LAYOUTS = [torch.channels_last, torch.contiguous_format]


def laid_out(x_NPYX: Tensor, layout: torch.memory_format) -> Tensor:
    """A copy between NaN margins, in that layout."""
    if layout == torch.channels_last:
        return fenced(x_NPYX.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    return fenced(x_NPYX.contiguous())


@given(
    size=st.sampled_from([(1, 1, 1, 1), (2, 3, 5, 7), (1, 32, 16, 16), (3, 63, 4, 1), (2, 65, 8, 8)]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**31 - 1),
)
def test_kernel_is_as_exact_as_eager(
    size: tuple[int, int, int, int], dtype: torch.dtype, layout: torch.memory_format, scale: float, seed: int
) -> None:
    x_NPYX, bias_P = randn(*size, seed=seed, scale=scale).to(dtype), fenced(randn(size[1], seed=seed + 1))
    bias_P[0] = bias_P[0].abs() + scale * 8  # so that something is positive
    with guarded():
        got = kernel.bias_relu_fwd(laid_out(x_NPYX, layout), bias_P)
    exact = (x_NPYX.double() + bias_P.double()[:, None, None]).relu()
    eager = (x_NPYX + bias_P.to(dtype)[:, None, None]).relu()
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=layout)
    assert got.amin() >= 0
    assert_as_exact_as_eager(got, exact, eager)


def test_kernel_keeps_nan() -> None:
    x_NPYX = torch.tensor([float("nan"), -1.0, 1.0], device=DEVICE).view(1, 1, 1, 3)
    got = kernel.bias_relu_fwd(x_NPYX, torch.zeros(1, device=DEVICE)).flatten().tolist()
    assert got[0] != got[0]
    assert got[1:] == [0.0, 1.0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_ways_are_the_convolution_with_bias_and_relu(layout: torch.memory_format) -> None:
    x_NIYX, weight_OIYX = randn(2, 3, 9, 10, seed=0).contiguous(memory_format=layout), randn(5, 3, 4, 4, seed=1)
    bias_O = randn(5, seed=2)
    want = torch.nn.functional.conv2d(x_NIYX.double(), weight_OIYX.double(), bias_O.double(), 2, 1).relu()
    for name in ("reference", "triton"):
        with using(name):  # type: ignore[arg-type]
            got = conv_relu(x_NIYX, weight_OIYX, bias_O, (2, 2), (1, 1))
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("triton")
def test_where_a_gradient_is_wanted_it_is_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NIYX, bias_O = randn(2, 3, 9, 10, seed=0), randn(5, seed=2)
    weight_OIYX = randn(5, 3, 4, 4, seed=1).requires_grad_()
    monkeypatch.setattr(kernel, "bias_relu_fwd", None)
    given_ = x_NIYX, weight_OIYX, bias_O, (2, 2), (1, 1)
    got, want = (torch.autograd.grad(f(*given_).sum(), weight_OIYX)[0] for f in (conv_relu, reference.conv_relu))
    assert torch.equal(got, want)


def test_what_does_not_fit_raises() -> None:
    x_NIYX, weight_OIYX = randn(2, 3, 9, 10, seed=0), randn(5, 3, 4, 4, seed=1)
    with pytest.raises(ValueError, match=r"want images .* a bias \[O\]; got \(2, 3, 9, 10\), \(5, 3, 4, 4\), \(4,\)"):
        conv_relu(x_NIYX, weight_OIYX, randn(4, seed=2), (2, 2), (1, 1))
    with pytest.raises(ValueError, match="want images"):
        conv_relu(x_NIYX[:, :2], weight_OIYX, randn(5, seed=2), (2, 2), (1, 1))


@pytest.mark.gpu
def test_large_in_a_graph() -> None:
    """The largest result of a rollout's contexts, 2**28 elements, replayed on new inputs."""
    x_NPYX = torch.empty(8192, 32, 32, 32, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last)
    bias_P = torch.randn(32, device="cuda")
    x_NPYX.normal_()
    kernel.bias_relu_fwd(x_NPYX, bias_P)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernel.bias_relu_fwd(x_NPYX, bias_P)
    for _ in range(2):
        x_NPYX.normal_()
        graph.replay()
        for part in (slice(0, 8), slice(-8, None)):
            want = (x_NPYX[part].float() + bias_P[:, None, None]).relu()
            torch.testing.assert_close(out[part].float(), want, rtol=2**-8, atol=1e-6)
