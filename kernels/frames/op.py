"""Frames for the encoder as a torch op, and the public functions, which run the kernel or the reference."""

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.frames import reference


@backend.op("frames", "frames.gather_fwd")
def _gather(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    dtype: torch.dtype,
    is_channels_last: bool,
) -> Tensor:
    M, Y, X, P = frames_MYXP.shape
    N = M if index_N is None else index_N.shape[0]
    if is_channels_last:
        return frames_MYXP.new_empty((N, Y, X, P), dtype=dtype).permute(0, 3, 1, 2)
    return frames_MYXP.new_empty((N, P, Y, X), dtype=dtype)


def normalise(obs_NYXP: Tensor, mean_YXP: Tensor | None, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """image_NPYX = obs / 255 - mean; see `reference.normalise`.

    Raises:
        ValueError: where the frames are not uint8 [N, Y, X, P] or the mean is not [Y, X, P].
    """
    return gather(obs_NYXP, None, mean_YXP, dtype, layout)


def gather(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Tensor:
    """`normalise` of the frames at index_N, which lies on the device and is not checked against M; None takes all.

    Raises:
        ValueError: as `normalise`, and where the index is not int64 [N].
    """
    is_fit = frames_MYXP.dtype == torch.uint8 and frames_MYXP.ndim == 4
    if not is_fit or (mean_YXP is not None and mean_YXP.shape != frames_MYXP.shape[1:]):
        got = f"{frames_MYXP.dtype} {tuple(frames_MYXP.shape)}, {None if mean_YXP is None else tuple(mean_YXP.shape)}"
        raise ValueError(f"want uint8 frames [N, Y, X, P] and a mean [Y, X, P] or None; got {got}")
    if index_N is not None and (index_N.ndim != 1 or index_N.dtype != torch.int64):
        raise ValueError(f"want an int64 index [N]; got {index_N.dtype} {tuple(index_N.shape)}")
    if not backend.is_triton(frames_MYXP):
        return reference.gather(frames_MYXP, index_N, mean_YXP, dtype, layout)
    return _gather(frames_MYXP, index_N, mean_YXP, dtype, layout == torch.channels_last)
