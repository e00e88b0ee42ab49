"""Frames for the encoder in plain PyTorch: a gather from the replay, scaling to [0, 1], centring, layout."""

import torch
from torch import Tensor


def normalise(obs_NYXP: Tensor, mean_YXP: Tensor | None, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """obs / 255 - mean in float32, rounded to `dtype`.

    Args:
        obs_NYXP: uint8 frames.
        mean_YXP: float32, subtracted; None subtracts nothing.
        dtype: of the result.
        layout: memory format of the result; `channels_last` is the frames' own order.

    Returns:
        image_NPYX.
    """
    # Without a mean in `dtype` throughout: 0 to 255 are exact there and a quotient is rounded once, to the same bits.
    image_NYXP = obs_NYXP.to(dtype if mean_YXP is None else torch.float32).div_(255)
    if mean_YXP is not None:
        image_NYXP = image_NYXP.sub_(mean_YXP).to(dtype)
    return image_NYXP.permute(0, 3, 1, 2).contiguous(memory_format=layout)


def gather(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Tensor:
    """`normalise` of the frames at index_N, int64 in [0, M); of all in order where it is None."""
    picked_NYXP = frames_MYXP if index_N is None else frames_MYXP.index_select(0, index_N)
    return normalise(picked_NYXP, mean_YXP, dtype, layout)
