"""The decoder's last transposed convolution and the reconstruction error in plain PyTorch (STORM eq. 3, first term)."""

import torch
from torch import Tensor


def squared_error(
    x_NCYX: Tensor, weight_CPYX: Tensor, bias_P: Tensor, mean_YXP: Tensor | None, obs_NYXP: Tensor
) -> Tensor:
    """The sum over a frame's pixels of (image - obs / 255)^2, in float32, where image = deconv(x) + bias + mean.

    Args:
        x_NCYX: what the last layer reads.
        weight_CPYX: filters of 4 x 4, which double rows and columns.
        bias_P: added to every colour.
        mean_YXP: float32, added; None adds nothing.
        obs_NYXP: uint8 frames of twice the rows and columns.

    Returns:
        error_N: float32.
    """
    image_NPYX = torch.nn.functional.conv_transpose2d(x_NCYX, weight_CPYX, bias_P, 2, 1)
    if mean_YXP is not None:
        image_NPYX = image_NPYX + mean_YXP.permute(2, 0, 1)
    # In place, and one fused difference and square: on a CPU each further pass over the frames costs as much as a
    # convolution.
    target_NPYX = obs_NYXP.movedim(-1, -3).float().div_(255)
    squared_NPYX = torch.nn.functional.mse_loss(image_NPYX.float(), target_NPYX, reduction="none")
    return squared_NPYX.sum((-3, -2, -1))
