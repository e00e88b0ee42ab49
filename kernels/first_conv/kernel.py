"""The first convolution in one launch: it reads bytes and writes activations, and no image lies between the two."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_MIN_DOT = 16  # the smallest side of a tile that tensor cores take


@triton.jit
def _first_conv_fwd(
    frames_ptr,
    index_ptr,
    mean_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    Y: tl.constexpr,
    X: tl.constexpr,
    P: tl.constexpr,
    FILTERS: tl.constexpr,
    GATHER: tl.constexpr,
    MEAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """A tile of one frame's result: M pixels by O channels, a product over K = four rows of the filter.

    What a pixel sees of a frame's row is contiguous, 4 P bytes. They are j, padded to a power of 2.
    """
    OUT_X: tl.constexpr = X // 2
    PIXELS: tl.constexpr = (Y // 2) * OUT_X
    TILES: tl.constexpr = (PIXELS + BLOCK_M - 1) // BLOCK_M
    n = (tl.program_id(0) // TILES).to(tl.int64)  # int64: 8,192 frames have 2**28 activations, a replay 2**30 bytes
    m = (tl.program_id(0) % TILES) * BLOCK_M + tl.arange(0, BLOCK_M)  # mutation first_conv-only-first
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)  # mutation first_conv-channels-beyond
    k = tl.arange(0, 4 * BLOCK_J)
    j_K, filter_row_K = k % BLOCK_J, k // BLOCK_J
    row_MK = (2 * (m // OUT_X) - 1)[:, None] + filter_row_K[None, :]  # mutation first_conv-windows-start
    byte_MK = (2 * (m % OUT_X) - 1)[:, None] * P + j_K[None, :]  # mutation first_conv-windows-start-column
    is_inside_MK = (row_MK >= 0) & (row_MK < Y) & (byte_MK >= 0) & (byte_MK < X * P)  # mutation first_conv-row-before
    is_inside_MK &= (m < PIXELS)[:, None] & (j_K < 4 * P)[None, :]
    in_MK = row_MK * (X * P) + byte_MK
    frame = tl.load(index_ptr + n) if GATHER else n  # mutation first_conv-index-ignored
    x_MK = tl.load(frames_ptr + frame * (Y * X * P) + in_MK, mask=is_inside_MK, other=0).to(tl.float32)
    if MEAN:
        x_MK = x_MK / 255.0  # mutation first_conv-scaled-before
        x_MK -= tl.load(mean_ptr + in_MK, mask=is_inside_MK, other=0.0)  # mutation first_conv-mean-wrong
    is_weight_KO = (j_K < 4 * P)[:, None] & (o < FILTERS)[None, :]
    weight_KO = tl.load(
        weight_ptr + o[None, :] * (16 * P) + (filter_row_K * (4 * P) + j_K)[:, None], mask=is_weight_KO, other=0.0
    )
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    y_MO = tl.dot(x_MK.to(DTYPE), weight_KO.to(DTYPE), input_precision="tf32x3")
    if not MEAN:
        # mutation first_conv-scaled
        y_MO = y_MO / 255.0  # not before: 0 to 255 are exact in every dtype, their quotients are not
    # mutation first_conv-bias-missing
    y_MO += tl.load(bias_ptr + o, mask=o < FILTERS, other=0.0).to(tl.float32)[None, :]
    # mutation first_conv-clipped
    y_MO = y_MO * tl.sigmoid(y_MO) if SILU else tl.where(y_MO < 0, 0.0, y_MO)  # keeps NaN
    place_MO = m[:, None] * FILTERS + o[None, :] if CHANNELS_LAST else m[:, None] + o[None, :] * PIXELS
    is_kept_MO = (m < PIXELS)[:, None] & (o < FILTERS)[None, :]  # mutation first_conv-pixels-tail
    tl.store(out_ptr + n * (PIXELS * FILTERS) + place_MO, y_MO.to(DTYPE), mask=is_kept_MO)


def _tile(dtype: torch.dtype) -> tuple[int, int]:
    """Pixels of the result that a program computes, and channels at most."""
    # Narrow: four rows of 32; of 64, 128 and 256 pixels a prototype's fastest on an H100. Float32: more pixels or
    # channels would spill on sm_80, where an operand's two tf32 parts lie in registers.
    return (64, 32) if dtype == torch.float32 else (128, 64)


def first_conv_fwd(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    weight_OPYX: Tensor,
    bias_O: Tensor,
    dtype: torch.dtype,
    is_channels_last: bool,
    silu: bool = False,
) -> Tensor:
    """y_NOYX; without an index, of all frames in order."""
    M, Y, X, P = frames_MYXP.shape
    filters = weight_OPYX.shape[0]
    N = M if index_N is None else index_N.shape[0]
    out_Y, out_X = Y // 2, X // 2
    shape = (N, out_Y, out_X, filters) if is_channels_last else (N, filters, out_Y, out_X)
    out = torch.empty(shape, dtype=dtype, device=frames_MYXP.device)
    frames_MYXP = frames_MYXP.contiguous()
    block_M, most = _tile(dtype)
    block_O = min(most, max(_MIN_DOT, triton.next_power_of_2(filters)))
    _first_conv_fwd[(N * triton.cdiv(out_Y * out_X, block_M), triton.cdiv(filters, block_O))](
        frames_MYXP,
        frames_MYXP if index_N is None else index_N.contiguous(),
        frames_MYXP if mean_YXP is None else mean_YXP.contiguous(),
        weight_OPYX.permute(0, 2, 3, 1).contiguous(),  # a view where the model's weights are in channels_last
        bias_O.contiguous(),
        out,
        Y,
        X,
        P,
        filters,
        GATHER=index_N is not None,
        MEAN=mean_YXP is not None,
        CHANNELS_LAST=is_channels_last,
        SILU=silu,
        BLOCK_M=block_M,
        BLOCK_J=triton.next_power_of_2(4 * P),
        BLOCK_O=block_O,
        num_warps=4,
    )
    return out.permute(0, 3, 1, 2) if is_channels_last else out
