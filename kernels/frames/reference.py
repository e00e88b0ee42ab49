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
    image_NYXP = obs_NYXP.float().div_(255)
    if mean_YXP is not None:
        image_NYXP -= mean_YXP
    return image_NYXP.permute(0, 3, 1, 2).contiguous(memory_format=layout).to(dtype)


def gather(
    frames_MYXP: Tensor,
    index_N: Tensor,
    mean_YXP: Tensor | None,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Tensor:
    """`normalise` of the frames at index_N, int64 in [0, M)."""
    return normalise(frames_MYXP.index_select(0, index_N), mean_YXP, dtype, layout)
