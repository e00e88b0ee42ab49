"""The first convolution in one launch: it reads bytes and writes activations, and no image lies between the two.

Its filters' gradient reads the same bytes: two launches, and no image either.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_MIN_DOT = 16  # the smallest side of a tile that tensor cores take
_PROGRAMS = 512  # that sum the filters' gradient: four for each of an H100's processors; fixed, as is the sum's order
_REDUCED = 64  # numbers of it that a program of the second launch adds up


@triton.jit
def _pixels(
    frames_ptr,
    mean_ptr,
    frame,
    m,
    k,
    Y: tl.constexpr,
    X: tl.constexpr,
    P: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """What M pixels of a frame's result see of it, [M, K] in float32: bytes, or where there is a mean the image.

    K is four rows of the filter; what a pixel sees of each is contiguous, 4 P bytes: j, padded to a power of 2.
    """
    OUT_X: tl.constexpr = X // 2
    PIXELS: tl.constexpr = (Y // 2) * OUT_X
    j_K, filter_row_K = k % BLOCK_J, k // BLOCK_J
    row_MK = (2 * (m // OUT_X) - 1)[:, None] + filter_row_K[None, :]  # mutation first_conv-windows-start
    byte_MK = (2 * (m % OUT_X) - 1)[:, None] * P + j_K[None, :]  # mutation first_conv-windows-start-column
    is_inside_MK = (row_MK >= 0) & (row_MK < Y) & (byte_MK >= 0) & (byte_MK < X * P)  # mutation first_conv-row-before
    is_inside_MK &= (m < PIXELS)[:, None] & (j_K < 4 * P)[None, :]
    in_MK = row_MK * (X * P) + byte_MK
    x_MK = tl.load(frames_ptr + frame * (Y * X * P) + in_MK, mask=is_inside_MK, other=0).to(tl.float32)
    if MEAN:
        x_MK = x_MK / 255.0  # mutation first_conv-scaled-before
        x_MK -= tl.load(mean_ptr + in_MK, mask=is_inside_MK, other=0.0)  # mutation first_conv-mean-wrong
    return x_MK


@triton.jit
def _first_conv_fwd(
    frames_ptr,
    index_ptr,
    mean_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    out_ptr,
    Y: tl.constexpr,
    X: tl.constexpr,
    P: tl.constexpr,
    FILTERS: tl.constexpr,
    GATHER: tl.constexpr,
    MEAN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    RELU: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """A tile of one frame's result: M pixels by O channels, a product over K."""
    PIXELS: tl.constexpr = (Y // 2) * (X // 2)
    TILES: tl.constexpr = (PIXELS + BLOCK_M - 1) // BLOCK_M
    n = (tl.program_id(0) // TILES).to(tl.int64)  # int64: 8,192 frames have 2**28 activations, a replay 2**30 bytes
    m = (tl.program_id(0) % TILES) * BLOCK_M + tl.arange(0, BLOCK_M)  # mutation first_conv-only-first
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)  # mutation first_conv-channels-beyond
    k = tl.arange(0, 4 * BLOCK_J)
    j_K, filter_row_K = k % BLOCK_J, k // BLOCK_J
    frame = tl.load(index_ptr + n) if GATHER else n  # mutation first_conv-index-ignored
    x_MK = _pixels(frames_ptr, mean_ptr, frame, m, k, Y, X, P, MEAN, BLOCK_J)
    is_weight_KO = (j_K < 4 * P)[:, None] & (o < FILTERS)[None, :]
    weight_KO = tl.load(
        weight_ptr + o[None, :] * (16 * P) + (filter_row_K * (4 * P) + j_K)[:, None], mask=is_weight_KO, other=0.0
    )
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    y_MO = tl.dot(x_MK.to(DTYPE), weight_KO.to(DTYPE), input_precision="tf32x3")
    if SCALE:
        y_MO = y_MO * tl.load(scale_ptr + n)
    elif not MEAN:
        # mutation first_conv-scaled
        y_MO = y_MO / 255.0  # not before: 0 to 255 are exact in every dtype, their quotients are not
    if BIAS:
        # mutation first_conv-bias-missing
        y_MO += tl.load(bias_ptr + o, mask=o < FILTERS, other=0.0).to(tl.float32)[None, :]
    if RELU:
        y_MO = tl.where(y_MO < 0, 0.0, y_MO)  # mutation first_conv-clipped
    if SILU:
        y_MO = y_MO * tl.sigmoid(y_MO)
    place_MO = m[:, None] * FILTERS + o[None, :] if CHANNELS_LAST else m[:, None] + o[None, :] * PIXELS
    is_kept_MO = (m < PIXELS)[:, None] & (o < FILTERS)[None, :]  # mutation first_conv-pixels-tail
    tl.store(out_ptr + n * (PIXELS * FILTERS) + place_MO, y_MO.to(DTYPE), mask=is_kept_MO)


@triton.jit
def _filters_bwd(
    frames_ptr,
    index_ptr,
    mean_ptr,
    scale_ptr,
    grad_ptr,
    part_ptr,
    tiles,
    Y: tl.constexpr,
    X: tl.constexpr,
    P: tl.constexpr,
    FILTERS: tl.constexpr,
    GATHER: tl.constexpr,
    MEAN: tl.constexpr,
    SCALE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """One program's part of the filters' gradient, [K, O]: of every so many tiles a product over their M pixels."""
    PIXELS: tl.constexpr = (Y // 2) * (X // 2)
    TILES: tl.constexpr = (PIXELS + BLOCK_M - 1) // BLOCK_M
    o, k = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O), tl.arange(0, 4 * BLOCK_J)
    DTYPE: tl.constexpr = grad_ptr.dtype.element_ty
    sum_KO = tl.zeros([4 * BLOCK_J, BLOCK_O], tl.float32)
    for step in range(tl.cdiv(tiles, tl.num_programs(0))):  # mutation filters-bwd-one-tile
        tile = tl.program_id(0) + step * tl.num_programs(0)
        n = (tile // TILES).to(tl.int64)
        # Behind the last tile there is no pixel.
        m = tl.where(tile < tiles, (tile % TILES) * BLOCK_M + tl.arange(0, BLOCK_M), PIXELS)
        frame = tl.load(index_ptr + n, mask=tile < tiles, other=0) if GATHER else n  # mutation filters-bwd-index
        x_MK = _pixels(frames_ptr, mean_ptr, frame, m, k, Y, X, P, MEAN, BLOCK_J)
        if SCALE:
            x_MK *= tl.load(scale_ptr + n, mask=tile < tiles, other=0.0)  # mutation filters-bwd-scale-of
        place_MO = m[:, None] * FILTERS + o[None, :] if CHANNELS_LAST else m[:, None] + o[None, :] * PIXELS
        is_kept_MO = (m < PIXELS)[:, None] & (o < FILTERS)[None, :]  # mutation filters-bwd-tail
        grad_MO = tl.load(grad_ptr + n * (PIXELS * FILTERS) + place_MO, mask=is_kept_MO, other=0.0)
        sum_KO = tl.dot(tl.trans(x_MK.to(DTYPE)), grad_MO, sum_KO, input_precision="tf32x3")
    if not (MEAN or SCALE):
        sum_KO = sum_KO / 255.0  # mutation filters-bwd-scaled
    place_KO = (tl.program_id(0) * 4 * BLOCK_J + k)[:, None] * FILTERS + o[None, :]
    tl.store(part_ptr + place_KO, sum_KO, mask=(o < FILTERS)[None, :])


@triton.jit
def _filters_reduce(
    part_ptr,
    out_ptr,
    programs,
    P: tl.constexpr,
    FILTERS: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The sum of all parts, R numbers a program, written as filters [O, 4, 4, P]."""
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_kept_R = r < 4 * BLOCK_J * FILTERS
    sum_R = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, programs, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        is_part_SR = (s < programs)[:, None] & is_kept_R[None, :]  # mutation filters-reduce-parts
        part_SR = tl.load(part_ptr + s[:, None] * (4 * BLOCK_J * FILTERS) + r[None, :], mask=is_part_SR, other=0.0)
        sum_R += tl.sum(part_SR, 0)
    o_R, k_R = r % FILTERS, r // FILTERS
    j_R, filter_row_R = k_R % BLOCK_J, k_R // BLOCK_J
    is_kept_R &= j_R < 4 * P  # the others are padding
    place_R = o_R * (16 * P) + filter_row_R * (4 * P) + j_R  # mutation filters-reduce-place
    tl.store(out_ptr + place_R, sum_R.to(out_ptr.dtype.element_ty), mask=is_kept_R)


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
    bias_O: Tensor | None,
    dtype: torch.dtype,
    is_channels_last: bool,
    activation: str = "relu",
    scale_N: Tensor | None = None,
) -> Tensor:
    """y_NOYX; without an index, of all frames in order. The activation is relu, silu or none.

    With a scale the frames are numbers, not bytes, and each one's result is multiplied by its own.
    """
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
        out if bias_O is None else bias_O.contiguous(),
        out if scale_N is None else scale_N.contiguous(),
        out,
        Y,
        X,
        P,
        filters,
        GATHER=index_N is not None,
        MEAN=mean_YXP is not None,
        CHANNELS_LAST=is_channels_last,
        BIAS=bias_O is not None,
        SCALE=scale_N is not None,
        RELU=activation == "relu",
        SILU=activation == "silu",
        BLOCK_M=block_M,
        BLOCK_J=triton.next_power_of_2(4 * P),
        BLOCK_O=block_O,
        num_warps=4,
    )
    return out.permute(0, 3, 1, 2) if is_channels_last else out


def filters_bwd(
    grad_NOYX: Tensor,
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    dtype: torch.dtype,
    scale_N: Tensor | None = None,
) -> Tensor:
    """The gradient of the filters, [O, P, 4, 4] of `dtype` in channels_last; products are in the dtype of `grad`.

    With a scale the frames are numbers, not bytes, and each is multiplied by its own.
    """
    _, Y, X, P = frames_MYXP.shape
    N, filters = grad_NOYX.shape[:2]
    is_channels_last = grad_NOYX.is_contiguous(memory_format=torch.channels_last)
    dense = grad_NOYX.permute(0, 2, 3, 1) if is_channels_last else grad_NOYX.contiguous()
    block_M = 32 if grad_NOYX.dtype == torch.float32 else 128
    block_J, block_O = triton.next_power_of_2(4 * P), min(32, max(_MIN_DOT, triton.next_power_of_2(filters)))
    tiles = N * triton.cdiv((Y // 2) * (X // 2), block_M)
    programs = min(_PROGRAMS, tiles)
    part = torch.empty((programs, 4 * block_J, filters), dtype=torch.float32, device=grad_NOYX.device)
    frames_MYXP = frames_MYXP.contiguous()
    _filters_bwd[(programs, triton.cdiv(filters, block_O))](
        frames_MYXP,
        frames_MYXP if index_N is None else index_N.contiguous(),
        frames_MYXP if mean_YXP is None else mean_YXP.contiguous(),
        part if scale_N is None else scale_N.contiguous(),
        dense,
        part,
        tiles,
        Y,
        X,
        P,
        filters,
        GATHER=index_N is not None,
        MEAN=mean_YXP is not None,
        SCALE=scale_N is not None,
        CHANNELS_LAST=is_channels_last,
        BLOCK_M=block_M,
        BLOCK_J=block_J,
        BLOCK_O=block_O,
        num_warps=4,
    )
    out = torch.empty((filters, 4, 4, P), dtype=dtype, device=grad_NOYX.device)
    _filters_reduce[(triton.cdiv(4 * block_J * filters, _REDUCED),)](
        part, out, programs, P, filters, block_J, BLOCK_R=_REDUCED, BLOCK_S=32
    )
    return out.permute(0, 3, 1, 2)
