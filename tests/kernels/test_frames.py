"""Frames for the encoder: the definition, and the kernel against it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from storm_fast.kernels import frames
from storm_fast.kernels.backend import using
from storm_fast.kernels.frames import kernel, reference
from tests.kernels.harness import DEVICE, DTYPES, fenced, guarded, rand

LAYOUTS = [torch.channels_last, torch.contiguous_format]


def random_frames(M: int, y: int, x: int, p: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (M, y, x, p), dtype=torch.uint8, generator=g).to(DEVICE)


@given(
    n=st.sampled_from([1, 2, 5]),
    size=st.sampled_from([(1, 1, 1), (3, 5, 3), (64, 64, 3), (37, 63, 2)]),
    gathers=st.booleans(),
    centres=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**31 - 1),
)
def test_kernel_equals_the_reference(
    n: int,
    size: tuple[int, int, int],
    gathers: bool,
    centres: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    seed: int,
) -> None:
    frames_MYXP = fenced(random_frames(3, *size, seed))
    index_N = fenced(torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed)).to(DEVICE))
    mean_YXP = fenced(rand(*size, seed=seed)) if centres else None
    with guarded():
        got = kernel.gather_fwd(
            frames_MYXP, index_N if gathers else None, mean_YXP, dtype, layout == torch.channels_last
        )
    if gathers:
        want = reference.gather(frames_MYXP, index_N, mean_YXP, dtype, layout)
    else:
        want = reference.normalise(frames_MYXP, mean_YXP, dtype, layout)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=layout)
    # A GPU divides to within 2 units of 2^-24; rounding to a narrow dtype may then fall to the other side.
    torch.testing.assert_close(got, want, rtol=0, atol=2**-22 if dtype == torch.float32 else torch.finfo(dtype).eps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_definition_scales_centres_and_moves_colours_first(layout: torch.memory_format) -> None:
    obs_NYXP, mean_YXP = random_frames(4, 3, 5, 3, seed=0), rand(3, 5, 3, seed=1)
    obs_NYXP[1, 0, 0, 0], obs_NYXP[1, 0, 0, 1] = 0, 255
    index_N = torch.tensor([2, 0, 2], device=DEVICE)
    for name in ("reference", "triton"):
        with using(name):  # type: ignore[arg-type]
            got = frames.gather(obs_NYXP, index_N, mean_YXP, torch.float32, layout)
            plain = frames.normalise(obs_NYXP, None, torch.float32, layout)
        for n, row in enumerate(index_N.tolist()):
            want = (obs_NYXP[row].double() / 255 - mean_YXP.double()).permute(2, 0, 1)
            torch.testing.assert_close(got[n].double(), want, rtol=0, atol=2e-7)
        assert plain.amin() == 0
        # A GPU divides to within 2 units of 2^-24.
        assert abs(plain.amax().item() - 1) <= 2**-22
        assert plain.shape == (4, 3, 3, 5)


def test_what_does_not_fit_raises() -> None:
    obs_NYXP = random_frames(3, 2, 4, 3, 0)
    index_N, mean_YXP = torch.tensor([1, 2], device=DEVICE), torch.zeros(2, 4, 3, device=DEVICE)
    with pytest.raises(ValueError, match=r"want uint8 frames \[N, Y, X, P\]"):
        frames.normalise(obs_NYXP.float(), None, torch.float32, torch.channels_last)
    with pytest.raises(ValueError, match=r"a mean \[Y, X, P\] or None"):
        frames.normalise(obs_NYXP, mean_YXP[:1], torch.float32, torch.channels_last)
    with pytest.raises(ValueError, match=r"want an int64 index \[N\]; got torch.int32"):
        frames.gather(obs_NYXP, index_N.int(), None, torch.float32, torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_is_its_quotient_in_float32_rounded_once(dtype: torch.dtype) -> None:
    every_NYXP = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1)
    wanted_N = (torch.arange(256).float() / 255).to(dtype)
    assert torch.equal(reference.normalise(every_NYXP, None, dtype, torch.channels_last).flatten(), wanted_N)
