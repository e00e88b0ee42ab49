"""Where the world model compares what it decodes with frames: a batch of 16 x 64."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels.cost import Cost
from storm_fast.kernels.deconv_error import squared_error
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

N, SIDE, CHANNELS, COLOURS = 1024, 32, 32, 3
_X, _IMAGE = SIDE * SIDE * CHANNELS, 4 * SIDE * SIDE * COLOURS


def _inputs(
    draw: Draw, N: int, C: int, P: int, Y: int, X: int, layout: torch.memory_format, centres: bool = False
) -> tuple[Tensor | None, ...]:
    x_NCYX = draw.normal(N, C, Y, X).contiguous(memory_format=layout)
    weight_CPYX = draw.normal(C, P, 4, 4, scale=(4 * C) ** -0.5).contiguous(memory_format=layout)
    mean_YXP = draw.uniform(2 * Y, 2 * X, P) if centres else None
    obs_NYXP = draw.integers(256, N, 2 * Y, 2 * X, P, dtype=torch.uint8)
    return draw.leaf(x_NCYX), draw.leaf(weight_CPYX), draw.leaf(draw.normal(P)), mean_YXP, obs_NYXP


def _floors(
    x_NCYX: Tensor, weight_CPYX: Tensor, bias_P: Tensor, mean_YXP: Tensor | None, obs_NYXP: Tensor, *grad_N: Tensor
) -> tuple[float, ...]:
    # The image is a sum of products, rounded at their size, and so is its difference to the frame, on which all
    # gradients depend: each adds as many of it as it has terms.
    x, weight = x_NCYX.detach().double().abs(), weight_CPYX.detach().double().abs()
    image = torch.nn.functional.conv_transpose2d(x, weight, bias_P.detach().double().abs(), 2, 1)
    size = image.max().item() + 1 + (0 if mean_YXP is None else 1)
    floors = [size * size]
    for grad in grad_N:
        scale = 2 * size * grad.abs().max().item()
        pixels = x_NCYX.shape[0] * x_NCYX.shape[2] * x_NCYX.shape[3]
        floors += [scale * weight.sum((1, 2, 3)).max().item(), scale * pixels * x.max().item(), scale * 4 * pixels]
    return tuple(floors)


def _cost() -> Cost:
    """Forward reads x and frames and writes the difference; backward reads it and x, writes the gradient of x."""
    product = 2 * _IMAGE * CHANNELS * 4
    return Cost(3 * N * product, N * (2 * 3 * _X + _IMAGE + 2 * 3 * _IMAGE))


_SMALL = {"one": (1, 1, 1, 1, 1), "odd": (2, 5, 3, 3, 7), "wide": (1, 33, 1, 9, 8), "model": (2, CHANNELS, 3, 32, 32)}

SPECS = (
    Spec(
        "deconv_error.squared_error",
        squared_error,
        partial(_inputs, layout=torch.channels_last),
        small=_SMALL,
        full={
            "train": Use(
                "last deconvolution, error and gradients, 1024 frames",
                (N, CHANNELS, COLOURS, SIDE, SIDE),
                _cost(),
                learns=True,
            )
        },
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),  # a CPU has no convolution of float16
    ),
    Spec(
        "deconv_error.centred",
        squared_error,
        partial(_inputs, layout=torch.contiguous_format, centres=True),
        small=_SMALL,
        full={},
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),
    ),
)


def _least_dots(given: Mapping[str, Any], num_warps: int, architecture: int) -> int:
    """Nine products, each as first_conv.spec counts one, without tiles of columns that are padding."""
    rows, columns, depth = int(given["BLOCK_M"]), -(-4 * int(given["P"]) // 8) * 8, int(given["BLOCK_C"])
    is_float32 = given["x_ptr"].dtype == torch.float32
    steps = 9 * (depth // (8 if is_float32 else 16)) * (3 if is_float32 else 1)
    if architecture >= 90:
        return max(1, rows // (128 if architecture >= 100 else 64)) * steps
    return max(1, rows * columns // (16 * 8 * num_warps)) * steps


BUDGETS = {"_deconv_error_fwd": Budget(216, 33, _least_dots), "_deconv_error_reduce": Budget(64)}
