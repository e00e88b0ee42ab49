"""The reconstruction error in plain PyTorch (STORM eq. 3, its first term)."""

import torch
from torch import Tensor


def squared_error(image_NPYX: Tensor, obs_NYXP: Tensor) -> Tensor:
    """The sum over a frame's pixels of (image - obs / 255)^2, in float32.

    Args:
        image_NPYX: decoded frames, [..., P, Y, X], any float dtype and memory format.
        obs_NYXP: uint8 frames, [..., Y, X, P].

    Returns:
        error_N: float32 [...].
    """
    # In place, and one fused difference and square: on a CPU each further pass over the frames costs as much as a
    # convolution.
    target_NPYX = obs_NYXP.movedim(-1, -3).float().div_(255)
    squared_NPYX = torch.nn.functional.mse_loss(image_NPYX.float(), target_NPYX, reduction="none")
    return squared_NPYX.sum((-3, -2, -1))
