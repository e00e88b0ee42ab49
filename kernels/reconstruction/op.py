"""The reconstruction error as a torch op, and the public function, which runs the kernel or the reference."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels import backend
from storm_fast.kernels.reconstruction import reference


@backend.op("reconstruction", "reconstruction.squared_fwd")
def _squared(image_NPYX: Tensor, obs_NYXP: Tensor, is_channels_last: bool) -> Tensor:
    return image_NPYX.new_empty((image_NPYX.shape[0],), dtype=torch.float32)


@backend.op("reconstruction_backward", "reconstruction.squared_bwd")
def _squared_backward(grad_N: Tensor, image_NPYX: Tensor, obs_NYXP: Tensor, is_channels_last: bool) -> Tensor:
    if is_channels_last:
        return image_NPYX.new_empty(obs_NYXP.shape).permute(0, 3, 1, 2)
    return image_NPYX.new_empty(image_NPYX.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    image_NPYX, obs_NYXP, ctx.is_channels_last = inputs
    ctx.save_for_backward(image_NPYX, obs_NYXP)


def _grad(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
    image_NPYX, obs_NYXP = ctx.saved_tensors
    return _squared_backward(grad_N, image_NPYX, obs_NYXP, ctx.is_channels_last), None, None


torch.library.register_autograd("storm_fast::reconstruction", _grad, setup_context=_setup)


def squared_error(image_NPYX: Tensor, obs_NYXP: Tensor) -> Tensor:
    """The sum over a frame's pixels of (image - obs / 255)^2, float32 [...]; see `reference.squared_error`.

    Raises:
        ValueError: where the frames are not uint8 [..., Y, X, P] for an image [..., P, Y, X].
    """
    is_shaped = obs_NYXP.ndim >= 3 and image_NPYX.shape == obs_NYXP.movedim(-1, -3).shape
    if obs_NYXP.dtype != torch.uint8 or not is_shaped:
        got = f"{tuple(image_NPYX.shape)}, {obs_NYXP.dtype} {tuple(obs_NYXP.shape)}"
        raise ValueError(f"want an image [..., P, Y, X] and uint8 frames [..., Y, X, P]; got {got}")
    if not backend.is_triton(image_NPYX):
        return reference.squared_error(image_NPYX, obs_NYXP)
    image = image_NPYX.reshape(-1, *image_NPYX.shape[-3:])
    is_channels_last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    error_N = _squared(image, obs_NYXP.reshape(-1, *obs_NYXP.shape[-3:]), is_channels_last)
    return error_N.view(image_NPYX.shape[:-3])
