"""The reconstruction error's kernels against their reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import reconstruction
from storm_fast.kernels.backend import using
from storm_fast.kernels.reconstruction import kernel
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, rand, randn

OPS = torch.ops.storm_fast
SIDES = st.sampled_from([(1, 1), (1, 2), (3, 5), (37, 41)])  # the last in two tiles where it has three colours


def random_frames(*shape: int, seed: int) -> Tensor:
    return (256 * rand(*shape, seed=seed)).to(torch.uint8)


def laid(image_NPYX: Tensor, is_channels_last: bool) -> Tensor:
    """The image between margins of NaN, in one of the two layouts."""
    return fenced(image_NPYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if is_channels_last else fenced(image_NPYX)


def exact(image_NPYX: Tensor, obs_NYXP: Tensor) -> Tensor:
    return (image_NPYX - obs_NYXP.permute(0, 3, 1, 2).double() / 255).square().sum((1, 2, 3))


@given(
    n=st.sampled_from([1, 2, 5]),
    sides=SIDES,
    p=st.sampled_from([1, 3]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    is_channels_last=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_values_and_gradients_equal_the_definition(
    n: int, sides: tuple[int, int], p: int, dtype: torch.dtype, scale: float, is_channels_last: bool, seed: int
) -> None:
    image_NPYX = laid(randn(n, p, *sides, seed=seed, scale=scale).to(dtype), is_channels_last)
    obs_NYXP, grad_N = fenced(random_frames(n, *sides, p, seed=seed + 1)), fenced(randn(n, seed=seed + 2))
    with guarded():
        error_N = kernel.squared_fwd(image_NPYX, obs_NYXP, is_channels_last)
    with guarded():
        got_NPYX = kernel.squared_bwd(grad_N, image_NPYX, obs_NYXP, is_channels_last)
    assert (error_N.dtype, got_NPYX.dtype) == (torch.float32, dtype)
    assert got_NPYX.stride() == image_NPYX.stride()

    leaf_NPYX = image_NPYX.double().requires_grad_()
    exact_N = exact(leaf_NPYX, obs_NYXP)
    (exact_NPYX,) = torch.autograd.grad(exact_N, leaf_NPYX, grad_N.double())
    # obs / 255 is rounded, at the size of at most 1, before the difference is taken; pixels may be met by chance.
    size = image_NPYX.double().abs().max().item() + 1
    assert_as_exact_as_eager(error_N, exact_N.detach(), exact_N.detach(), floor=size, may_vanish=True)
    floor = 2 * size * grad_N.abs().max().item()
    assert_as_exact_as_eager(got_NPYX, exact_NPYX, exact_NPYX, floor=floor, may_vanish=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_ordinary_results_are_far_from_zero_and_near_the_definition(is_channels_last: bool, dtype: torch.dtype) -> None:
    # Every pixel differs: no zero passes, which the property above must allow for.
    image_NPYX = laid(2 + randn(3, 3, 37, 41, seed=0).abs().to(dtype), is_channels_last)
    obs_NYXP, grad_N = random_frames(3, 37, 41, 3, seed=1), 1 + rand(3, seed=2)
    leaf_NPYX = image_NPYX.double().requires_grad_()
    exact_N = exact(leaf_NPYX, obs_NYXP)
    (exact_NPYX,) = torch.autograd.grad(exact_N, leaf_NPYX, grad_N.double())
    error_N = kernel.squared_fwd(image_NPYX, obs_NYXP, is_channels_last)
    assert_as_exact_as_eager(error_N, exact_N.detach(), exact_N.detach())
    got_NPYX = kernel.squared_bwd(grad_N, image_NPYX, obs_NYXP, is_channels_last)
    assert_as_exact_as_eager(got_NPYX, exact_NPYX, exact_NPYX)


def test_an_image_equal_to_its_frame_has_no_error() -> None:
    obs_NYXP = random_frames(2, 4, 5, 3, seed=0)
    image_NPYX = obs_NYXP.permute(0, 3, 1, 2).float() / 255
    # A GPU's division may round otherwise than PyTorch's, by 2^-23 of a value of at most 1.
    assert (kernel.squared_fwd(image_NPYX, obs_NYXP, is_channels_last=True) <= 60 * 2.0**-46).all()


def test_what_is_no_number_spoils_its_own_frame_alone() -> None:
    image_NPYX, obs_NYXP = randn(3, 3, 4, 5, seed=0), random_frames(3, 4, 5, 3, seed=1)
    image_NPYX[1, 2, 3, 4] = torch.nan
    assert kernel.squared_fwd(image_NPYX, obs_NYXP, is_channels_last=False).isnan().tolist() == [False, True, False]
    got_NPYX = kernel.squared_bwd(torch.ones(3, device=DEVICE), image_NPYX, obs_NYXP, is_channels_last=False)
    assert torch.equal(got_NPYX.isnan(), image_NPYX.isnan())


@pytest.mark.parametrize("lay", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_public_function_equals_the_reference_in_any_layout(dtype: torch.dtype, lay: str) -> None:
    image = randn(6, 3, 4, 5, seed=0).to(dtype)
    if lay == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
    elif lay == "strided":
        image = image.mT.contiguous().mT
    obs_BTYXP, grad_BT = random_frames(2, 3, 4, 5, 3, seed=1), randn(2, 3, seed=2)
    found = []
    for name in ("reference", "triton"):
        leaf = image.clone().requires_grad_()
        assert leaf.stride() == image.stride()
        with using(name):  # type: ignore[arg-type]
            error_BT = reconstruction.squared_error(leaf.unflatten(0, (2, 3)), obs_BTYXP)
        found.append((error_BT.detach(), *torch.autograd.grad(error_BT, leaf, grad_BT)))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=2 * torch.finfo(want.dtype).eps + 1e-6, atol=1e-6)


def test_what_does_not_fit_raises() -> None:
    image_NPYX, obs_NYXP = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    for image, obs in ((image_NPYX, obs_NYXP.float()), (image_NPYX[:1], obs_NYXP), (image_NPYX.mT, obs_NYXP)):
        with pytest.raises(ValueError, match=r"want an image \[..., P, Y, X\]"):
            reconstruction.squared_error(image, obs)
