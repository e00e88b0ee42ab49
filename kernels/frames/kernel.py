"""Frames for the encoder in one launch: each output element is written once, each input byte read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # elements a program writes: a third of a frame


@triton.jit
def _gather_fwd(
    frames_ptr,
    index_ptr,
    mean_ptr,
    out_ptr,
    PIXELS: tl.constexpr,
    P: tl.constexpr,
    GATHER: tl.constexpr,
    MEAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # place in the output frame
    is_kept = o < PIXELS * P
    # mutation frames-rows-colours
    i = o if CHANNELS_LAST else (o % PIXELS) * P + o // PIXELS  # place in the input frame
    row = tl.load(index_ptr + n) if GATHER else n  # mutation frames-index-ignored
    # mutation frames-scaled
    x = tl.load(frames_ptr + row * (PIXELS * P) + i, mask=is_kept, other=0).to(tl.float32) / 255.0
    if MEAN:
        x -= tl.load(mean_ptr + i, mask=is_kept, other=0.0)  # mutation frames-mean-added
    tl.store(out_ptr + n * (PIXELS * P) + o, x.to(out_ptr.dtype.element_ty), mask=is_kept)


def gather_fwd(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    dtype: torch.dtype,
    is_channels_last: bool,
) -> Tensor:
    """image_NPYX; without an index, of all frames in order."""
    M, Y, X, P = frames_MYXP.shape
    N = M if index_N is None else index_N.shape[0]
    shape = (N, Y, X, P) if is_channels_last else (N, P, Y, X)
    out = torch.empty(shape, dtype=dtype, device=frames_MYXP.device)
    frames_MYXP = frames_MYXP.contiguous()
    _gather_fwd[(N, triton.cdiv(Y * X * P, _BLOCK))](
        frames_MYXP,
        frames_MYXP if index_N is None else index_N.contiguous(),
        frames_MYXP if mean_YXP is None else mean_YXP.contiguous(),
        out,
        Y * X,
        P,
        GATHER=index_N is not None,
        MEAN=mean_YXP is not None,
        CHANNELS_LAST=is_channels_last,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return out.permute(0, 3, 1, 2) if is_channels_last else out
