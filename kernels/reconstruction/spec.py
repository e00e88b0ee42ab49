"""Where the world model compares decoded images with frames: a batch of 16 x 64."""

from functools import partial

import torch
from torch import Tensor

from storm_fast.kernels.cost import Cost
from storm_fast.kernels.reconstruction import squared_error
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

BF16_BYTES = 2


def _inputs(draw: Draw, N: int, Y: int, X: int, P: int, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    image_NPYX = draw.normal(N, P, Y, X).contiguous(memory_format=layout)
    return draw.leaf(image_NPYX), draw.integers(256, N, Y, X, P, dtype=torch.uint8)


def _floors(image_NPYX: Tensor, _: Tensor, *grad_N: Tensor) -> tuple[float, ...]:
    # obs / 255 is rounded, at the size of at most 1, before the difference is taken.
    size = image_NPYX.abs().max().item() + 1
    return size, *(2 * size * grad.abs().max().item() for grad in grad_N)


_SMALL = {"one": (1, 1, 2, 1), "odd": (2, 37, 41, 3), "model": (3, 64, 64, 3)}

SPECS = (
    Spec(
        "reconstruction.squared_error",
        squared_error,
        partial(_inputs, layout=torch.channels_last),
        small=_SMALL,
        full={
            "train": Use(
                "reconstruction error and gradient, 1024 frames",
                (1024, 64, 64, 3),
                # Forward reads image and frame, backward reads both and writes a gradient.
                Cost(7 * 1024 * 64 * 64 * 3, 1024 * 64 * 64 * 3 * (3 * BF16_BYTES + 2) + 8 * 1024),
                learns=True,
            )
        },
        floors=_floors,
    ),
    Spec(
        "reconstruction.contiguous",
        squared_error,
        partial(_inputs, layout=torch.contiguous_format),
        small=_SMALL,
        full={},
        floors=_floors,
    ),
)

BUDGETS = {"_squared_fwd": Budget(48), "_squared_bwd": Budget(48, 8)}
