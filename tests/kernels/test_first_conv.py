"""The first convolution of uint8 frames: borders, sizes, margins and what it rounds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels.backend import using
from storm_fast.kernels.first_conv import first_conv, kernel, reference
from tests.kernels.harness import DEVICE, DTYPES, assert_as_exact_as_eager, fenced, guarded, rand, randn

LAYOUTS = [torch.channels_last, torch.contiguous_format]


def random_frames(*shape: int, seed: int) -> Tensor:
    return (256 * rand(*shape, seed=seed)).to(torch.uint8)


def definition(
    frames_MYXP: Tensor, index_N: Tensor | None, mean_YXP: Tensor | None, weight_OPYX: Tensor, bias_O: Tensor
) -> Tensor:
    """Written out once more, in float64."""
    picked_NYXP = (frames_MYXP if index_N is None else frames_MYXP[index_N]).double() / 255
    image_NYXP = picked_NYXP if mean_YXP is None else picked_NYXP - mean_YXP.double()
    image_NPYX = image_NYXP.permute(0, 3, 1, 2)
    return torch.nn.functional.conv2d(image_NPYX, weight_OPYX.double(), bias_O.double(), 2, 1).relu()


@given(
    size=st.sampled_from([(2, 2), (3, 5), (7, 4), (16, 63), (64, 64)]),
    p=st.sampled_from([1, 2, 3]),
    filters=st.sampled_from([1, 16, 33]),
    gathers=st.booleans(),
    centres=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31 - 1),
)
def test_kernel_is_as_exact_as_products_of_its_dtype(
    size: tuple[int, int],
    p: int,
    filters: int,
    gathers: bool,
    centres: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    seed: int,
) -> None:
    frames_MYXP = fenced(random_frames(3, *size, p, seed=seed))
    index_N = fenced(torch.tensor([2, 0, 2, 1], device=DEVICE)) if gathers else None
    mean_YXP = fenced(rand(*size, p, seed=seed + 1)) if centres else None
    weight_OPYX, bias_O = randn(filters, p, 4, 4, seed=seed + 2), fenced(randn(filters, seed=seed + 3))
    bias_O[0] = bias_O[0].abs() + 8  # so that something is positive
    given_ = frames_MYXP, index_N, mean_YXP
    with guarded():
        got = kernel.first_conv_fwd(
            *given_, fenced(weight_OPYX), bias_O, dtype, is_channels_last=layout == torch.channels_last
        )
    exact = definition(*given_, weight_OPYX, bias_O)
    # Filters and, where there is a mean, pixels are rounded to the dtype of the products; the result once.
    image = definition(*given_, weight_OPYX.to(dtype), bias_O)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=layout)
    assert got.amin() >= 0
    terms = weight_OPYX.abs().sum((1, 2, 3)).max().item() + bias_O.abs().max().item()
    rounded = terms if centres and dtype != torch.float32 else 0.0
    assert_as_exact_as_eager(got, exact, image, floor=terms, rounded=rounded, may_vanish=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("centres", [False, True])
def test_errs_at_most_twice_as_far_as_the_reference(centres: bool, dtype: torch.dtype) -> None:
    frames_MYXP, weight_OPYX, bias_O = (
        random_frames(4, 64, 64, 3, seed=0),
        randn(32, 3, 4, 4, seed=1),
        randn(32, seed=2),
    )
    mean_YXP = rand(64, 64, 3, seed=3) if centres else None
    given_ = frames_MYXP, None, mean_YXP, weight_OPYX, bias_O
    exact = definition(*given_)
    found = []
    for name in ("reference", "triton"):
        with using(name), torch.no_grad():  # type: ignore[arg-type]
            found.append((first_conv(*given_, dtype, torch.channels_last).double() - exact).norm() / exact.norm())
    assert found[0] < 0.02
    assert found[1] <= 2 * found[0]


@pytest.mark.parametrize("name", ["reference", "triton"])
def test_outside_of_the_image_there_is_nothing_to_subtract_the_mean_from(name: str) -> None:
    # Black frames and a mean of 1: an image of -1, and zeros around it. Filters of -1 count the pixels that they see.
    frames_MYXP = torch.zeros(1, 6, 8, 1, dtype=torch.uint8, device=DEVICE)
    mean_YXP, weight_OPYX = torch.ones(6, 8, 1, device=DEVICE), -torch.ones(1, 1, 4, 4, device=DEVICE)
    with using(name):  # type: ignore[arg-type]
        got = first_conv(
            frames_MYXP, None, mean_YXP, weight_OPYX, torch.zeros(1, device=DEVICE), torch.float32, LAYOUTS[0]
        )
    assert got[0, 0].tolist() == [[9, 12, 12, 9], [12, 16, 16, 12], [9, 12, 12, 9]]


def test_the_index_may_repeat_and_be_in_any_order() -> None:
    frames_MYXP, weight_OPYX, bias_O = random_frames(5, 6, 6, 3, seed=0), randn(8, 3, 4, 4, seed=1), randn(8, seed=2)
    index_N = torch.tensor([4, 1, 1, 0, 4, 3], device=DEVICE)
    with using("triton"):
        all_M = first_conv(frames_MYXP, None, None, weight_OPYX, bias_O, torch.float32, LAYOUTS[0])
        some_N = first_conv(frames_MYXP, index_N, None, weight_OPYX, bias_O, torch.float32, LAYOUTS[0])
    assert torch.equal(some_N, all_M[index_N])


def test_kernel_keeps_nan() -> None:
    frames_MYXP, weight_OPYX = random_frames(1, 4, 4, 1, seed=0), randn(2, 1, 4, 4, seed=1)
    bias_O = torch.tensor([torch.nan, 1.0], device=DEVICE)
    got = kernel.first_conv_fwd(frames_MYXP, None, None, weight_OPYX, bias_O, torch.float32, True)
    assert got[:, 0].isnan().all()
    assert got[:, 1].isfinite().all()


@pytest.mark.usefixtures("triton")
def test_a_gradient_behind_bias_and_activation_is_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    frames_MYXP, bias_O = random_frames(2, 6, 6, 3, seed=0), randn(4, seed=1)
    weight_OPYX = randn(4, 3, 4, 4, seed=2).requires_grad_()
    monkeypatch.setattr(kernel, "first_conv_fwd", None)
    given_ = frames_MYXP, None, None, weight_OPYX, bias_O, torch.float32, LAYOUTS[1]
    got, want = (torch.autograd.grad(f(*given_).sum(), weight_OPYX)[0] for f in (first_conv, reference.first_conv))
    assert torch.equal(got, want)


def test_what_does_not_fit_raises() -> None:
    frames_MYXP, mean_YXP = random_frames(3, 4, 6, 3, seed=0), torch.zeros(4, 6, 3, device=DEVICE)
    index_N, weight_OPYX, bias_O = (
        torch.tensor([1, 2], device=DEVICE),
        randn(5, 3, 4, 4, seed=1),
        torch.zeros(5, device=DEVICE),
    )
    f32, last = torch.float32, torch.channels_last
    with pytest.raises(ValueError, match=r"want uint8 frames \[N, Y, X, P\] of at least 2 x 2"):
        first_conv(frames_MYXP.float(), None, None, weight_OPYX, bias_O, f32, last)
    with pytest.raises(ValueError, match="of at least 2 x 2"):
        first_conv(frames_MYXP[:, :1], None, None, weight_OPYX, bias_O, f32, last)
    with pytest.raises(ValueError, match=r"a mean \[Y, X, P\] or None"):
        first_conv(frames_MYXP, None, mean_YXP[:1], weight_OPYX, bias_O, f32, last)
    with pytest.raises(ValueError, match=r"want an int64 index \[N\] or None; got torch.int32 \(2,\)"):
        first_conv(frames_MYXP, index_N.int(), None, weight_OPYX, bias_O, f32, last)
    for weight, bias in ((weight_OPYX[:, :2], bias_O), (weight_OPYX, bias_O[:4]), (weight_OPYX[..., :3], bias_O)):
        with pytest.raises(ValueError, match=r"want filters \[O, 3, 4, 4\] and a bias \[O\]"):
            first_conv(frames_MYXP, None, None, weight, bias, f32, last)
    with pytest.raises(ValueError, match="want a dtype of"):
        first_conv(frames_MYXP, None, None, weight_OPYX, bias_O, torch.float64, last)
    with pytest.raises(ValueError, match="on one device"):
        first_conv(frames_MYXP, None, None, weight_OPYX.to("meta"), bias_O, f32, last)


@given(
    size=st.sampled_from([(2, 2), (5, 7), (9, 34), (64, 64)]),
    p=st.sampled_from([1, 3]),
    filters=st.sampled_from([1, 32, 33]),
    gathers=st.booleans(),
    centres=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_filters_gradient_is_as_exact_as_products_of_its_dtype(
    size: tuple[int, int],
    p: int,
    filters: int,
    gathers: bool,
    centres: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    seed: int,
) -> None:
    frames_MYXP = fenced(random_frames(4, *size, p, seed=seed))
    index_N = fenced(torch.tensor([2, 0, 2, 1], device=DEVICE)) if gathers else None
    mean_YXP = fenced(rand(*size, p, seed=seed + 1)) if centres else None
    grad_NOYX = randn(4, filters, size[0] // 2, size[1] // 2, seed=seed + 2).to(dtype).contiguous(memory_format=layout)
    with guarded():
        got = kernel.filters_bwd(grad_NOYX, frames_MYXP, index_N, mean_YXP, torch.float32)
        again = kernel.filters_bwd(grad_NOYX, frames_MYXP, index_N, mean_YXP, torch.float32)
    assert torch.equal(got, again)
    leaf = torch.zeros(filters, p, 4, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    picked_NYXP = (frames_MYXP if index_N is None else frames_MYXP[index_N]).double() / 255
    image_NYXP = picked_NYXP if mean_YXP is None else picked_NYXP - mean_YXP.double()
    raw_NOYX = torch.nn.functional.conv2d(image_NYXP.permute(0, 3, 1, 2), leaf, None, 2, 1)
    (exact,) = torch.autograd.grad(raw_NOYX, leaf, grad_NOYX.double())
    terms = grad_NOYX.double().abs().sum((0, 2, 3)).max().item()
    # With a mean, pixels are rounded to the dtype of the products; sums are float32.
    rounding = torch.finfo(dtype).eps if centres else 0.0
    assert (got.double() - exact).abs().max().item() <= (rounding + 1e-5) * terms


def test_more_tiles_than_programs_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    frames_MYXP, grad_NOYX = random_frames(3, 64, 64, 3, seed=0), randn(3, 8, 32, 32, seed=1)
    want = kernel.filters_bwd(grad_NOYX, frames_MYXP, None, None, torch.float32)
    monkeypatch.setattr(kernel, "_PROGRAMS", 7)
    got = kernel.filters_bwd(grad_NOYX, frames_MYXP, None, None, torch.float32)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-3)


def test_a_gradient_that_is_not_a_number_stays_in_its_filter() -> None:
    frames_MYXP, grad_NOYX = random_frames(2, 8, 8, 3, seed=0), randn(2, 4, 4, 4, seed=1)
    grad_NOYX[1, 2, 3, 1] = torch.nan
    got = kernel.filters_bwd(grad_NOYX, frames_MYXP, None, None, torch.float32)
    assert got[2].isnan().any()
    assert got[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_the_definition_scales_centres_and_moves_colours_first(layout: torch.memory_format, name: str) -> None:
    obs_NYXP, mean_YXP = random_frames(4, 3, 5, 3, seed=0), rand(3, 5, 3, seed=1)
    index_N = torch.tensor([2, 0, 2], device=DEVICE)
    got = reference.gather(obs_NYXP, index_N, mean_YXP, torch.float32, layout)
    for n, row in enumerate(index_N.tolist()):
        want = (obs_NYXP[row].double() / 255 - mean_YXP.double()).permute(2, 0, 1)
        torch.testing.assert_close(got[n].double(), want, rtol=0, atol=2e-7)
    assert got.is_contiguous(memory_format=layout)
    weight_OPYX = torch.zeros(1, 3, 4, 4, device=DEVICE)
    weight_OPYX[0, 1, 1, 1] = 1  # what lies at even rows and columns of the second colour
    with using(name):  # type: ignore[arg-type]
        picked = first_conv(obs_NYXP, index_N, mean_YXP, weight_OPYX, None, torch.float32, layout, activation=None)
    torch.testing.assert_close(picked[:, 0], got[:, 1, :2:2, :4:2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_of_numbers_are_scaled_each_by_its_own(dtype: torch.dtype) -> None:
    numbers_NYXP, scale_N = randn(3, 6, 10, 3, seed=0).to(dtype), randn(3, seed=1)
    weight_OPYX, grad_NOYX = randn(5, 3, 4, 4, seed=2).to(dtype), randn(3, 5, 3, 5, seed=3).to(dtype)
    got = kernel.first_conv_fwd(numbers_NYXP, None, None, weight_OPYX, None, dtype, True, "none", scale_N)
    image_NPYX = numbers_NYXP.double().permute(0, 3, 1, 2)
    leaf = weight_OPYX.double().requires_grad_()
    raw_NOYX = torch.nn.functional.conv2d(image_NPYX, leaf, None, 2, 1) * scale_N.double()[:, None, None, None]
    (exact,) = torch.autograd.grad(raw_NOYX, leaf, grad_NOYX.double())
    rounding = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 0.05}
    torch.testing.assert_close(got.double(), raw_NOYX.detach(), **rounding)
    bwd = kernel.filters_bwd(grad_NOYX, numbers_NYXP, None, None, torch.float32, scale_N)
    torch.testing.assert_close(bwd.double(), exact, rtol=0.02, atol=0.1 if dtype == torch.bfloat16 else 1e-4)
