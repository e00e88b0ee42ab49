"""The reconstruction error: images and uint8 frames are read once in either direction, nothing else is written."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # elements a program holds at once: a third of a frame


@triton.jit
def _error(image_ptr, obs_ptr, n, o, PIXELS: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """image - obs / 255 at places `o` of the image's frame n, in float32; 0 beyond its end."""
    # mutation reconstruction-rows-colours
    i = o if CHANNELS_LAST else (o % PIXELS) * P + o // PIXELS  # place in the observation's frame
    is_kept = o < PIXELS * P
    image = tl.load(image_ptr + n * (PIXELS * P) + o, mask=is_kept, other=0.0).to(tl.float32)
    # mutation reconstruction-scaled
    return image - tl.load(obs_ptr + n * (PIXELS * P) + i, mask=is_kept, other=0).to(tl.float32) / 255.0


@triton.jit
def _squared_fwd(
    image_ptr,
    obs_ptr,
    out_ptr,
    PIXELS: tl.constexpr,
    P: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    sum_O = tl.zeros([BLOCK], tl.float32)
    for start in range(0, PIXELS * P, BLOCK):
        error_O = _error(image_ptr, obs_ptr, n, start + tl.arange(0, BLOCK), PIXELS, P, CHANNELS_LAST)
        sum_O += error_O * error_O  # mutation reconstruction-only-frame
    tl.store(out_ptr + n, tl.sum(sum_O, 0))


@triton.jit
def _squared_bwd(
    grad_ptr,
    image_ptr,
    obs_ptr,
    out_ptr,
    PIXELS: tl.constexpr,
    P: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    error_O = _error(image_ptr, obs_ptr, n, o, PIXELS, P, CHANNELS_LAST)
    out_O = 2.0 * tl.load(grad_ptr + n) * error_O  # mutation reconstruction-backward-factor
    tl.store(out_ptr + n * (PIXELS * P) + o, out_O.to(out_ptr.dtype.element_ty), mask=o < PIXELS * P)


def _dense(image_NPYX: Tensor, is_channels_last: bool) -> Tensor:
    """The image in the order of its layout, [N, Y, X, P] or [N, P, Y, X]."""
    return (image_NPYX.permute(0, 2, 3, 1) if is_channels_last else image_NPYX).contiguous()


def squared_fwd(image_NPYX: Tensor, obs_NYXP: Tensor, is_channels_last: bool) -> Tensor:
    """Each frame's error, float32 [N]."""
    N, Y, X, P = obs_NYXP.shape
    error_N = torch.empty((N,), dtype=torch.float32, device=image_NPYX.device)
    image = _dense(image_NPYX, is_channels_last)
    _squared_fwd[(N,)](
        image, obs_NYXP.contiguous(), error_N, Y * X, P, CHANNELS_LAST=is_channels_last, BLOCK=_BLOCK, num_warps=8
    )
    return error_N


def squared_bwd(grad_N: Tensor, image_NPYX: Tensor, obs_NYXP: Tensor, is_channels_last: bool) -> Tensor:
    """The gradient of the image, in its dtype and layout."""
    N, Y, X, P = obs_NYXP.shape
    shape = (N, Y, X, P) if is_channels_last else (N, P, Y, X)
    out = torch.empty(shape, dtype=image_NPYX.dtype, device=image_NPYX.device)
    _squared_bwd[(N, triton.cdiv(Y * X * P, _BLOCK))](
        grad_N.contiguous(),
        _dense(image_NPYX, is_channels_last),
        obs_NYXP.contiguous(),
        out,
        Y * X,
        P,
        CHANNELS_LAST=is_channels_last,
        BLOCK=_BLOCK,
        num_warps=8,
    )
    return out.permute(0, 3, 1, 2) if is_channels_last else out
