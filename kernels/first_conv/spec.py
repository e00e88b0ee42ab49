"""Where the model encodes: the update's 1,024 frames, imagination's 8,192 contexts from the replay, and acting."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels.activation import Activation
from storm_fast.kernels.cost import Cost
from storm_fast.kernels.first_conv import first_conv
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

FRAME = (64, 64, 3)
FILTERS = 32
_BYTES, _PIXELS = 64 * 64 * 3, 32 * 32


def _plain(draw: Draw, N: int, O: int, *frame: int) -> tuple[Tensor | torch.dtype | None, ...]:  # noqa: E741  # axes
    P = frame[-1]
    weight_OPYX = draw.normal(O, P, 4, 4, dtype=torch.float32, scale=(16 * P) ** -0.5)
    bias_O = draw.normal(O, dtype=torch.float32)
    frames_NYXP = draw.integers(256, N, *frame, dtype=torch.uint8)
    return frames_NYXP, None, None, weight_OPYX.contiguous(memory_format=torch.channels_last), bias_O, draw.dtype


def _gathered(draw: Draw, N: int, M: int, *rest: int) -> tuple[Tensor | torch.dtype | None, ...]:
    frames_MYXP, _, mean_YXP, *others = _plain(draw, M, *rest)
    return frames_MYXP, draw.integers(M, N), mean_YXP, *others


def _centred(draw: Draw, N: int, M: int, *rest: int) -> tuple[Tensor | torch.dtype | None, ...]:
    frames_MYXP, index_N, _, *others = _gathered(draw, N, M, *rest)
    return frames_MYXP, index_N, draw.uniform(*rest[1:]), *others


def _call(
    frames_MYXP: Tensor,
    index_N: Tensor | None,
    mean_YXP: Tensor | None,
    weight_OPYX: Tensor,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    activation: Activation | None = "relu",
) -> Tensor:
    return first_conv(frames_MYXP, index_N, mean_YXP, weight_OPYX, bias_O, dtype, torch.channels_last, activation)


def _raw(draw: Draw, *sizes: int) -> tuple[Tensor | torch.dtype | None, ...]:
    frames_MYXP, index_N, mean_YXP, weight_OPYX, _, dtype = _gathered(draw, *sizes)
    assert isinstance(weight_OPYX, Tensor)
    return frames_MYXP, index_N, mean_YXP, draw.leaf(weight_OPYX), None, dtype


def _raw_centred(draw: Draw, *sizes: int) -> tuple[Tensor | torch.dtype | None, ...]:
    frames_MYXP, index_N, mean_YXP, weight_OPYX, _, dtype = _centred(draw, *sizes)
    assert isinstance(weight_OPYX, Tensor)
    return frames_MYXP, index_N, mean_YXP, draw.leaf(weight_OPYX), None, dtype


def _raw_floors(*inputs: Tensor) -> tuple[float, ...]:
    # The products that are added, of pixels of at most 1: of one window, and of all that meet a weight.
    weight_OPYX = inputs[3]
    return weight_OPYX.detach().abs().sum((1, 2, 3)).max().item(), *(
        grad_NOYX.abs().sum((0, 2, 3)).max().item() for grad_NOYX in inputs[6:]
    )


def _floors(*inputs: Tensor) -> tuple[float, ...]:
    # The products that are added, of pixels of at most 1, with the bias.
    weight_OPYX, bias_O = inputs[3:5]
    return (weight_OPYX.abs().sum((1, 2, 3)).max().item() + bias_O.abs().max().item(),)


def _learned_cost(N: int) -> Cost:
    """Forward as below; backward reads frames and gradient."""
    once = _cost(N)
    return Cost(2 * once.flops, 2 * once.bytes)


def _cost(N: int) -> Cost:
    """Frames read as bytes, their activations written in bf16."""
    return Cost(flops=2 * N * _PIXELS * FILTERS * 3 * 16, bytes=N * (_BYTES + 2 * _PIXELS * FILTERS))


_SMALL = {
    "one": (1, 1, 16, 2, 2, 1),
    "odd": (3, 2, 5, 7, 9, 3),
    "wide": (1, 2, 65, 6, 4, 1),
    "model": (2, 2, FILTERS, *FRAME),
}

SPECS = (
    Spec(
        "first_conv.first_conv",
        _call,
        _plain,
        small={name: sizes[1:] for name, sizes in _SMALL.items()},
        full={
            "act": Use("first convolution, 1 frame", (1, FILTERS, *FRAME), _cost(1)),
        },
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),  # a CPU has no convolution of float16
    ),
    Spec(
        "first_conv.gathered",
        _call,
        _gathered,
        small=_SMALL,
        full={"context": Use("first convolution, 8192 frames of 10000", (8192, 10_000, FILTERS, *FRAME), _cost(8192))},
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),
    ),
    Spec(
        "first_conv.silu",
        partial(_call, activation="silu"),
        _plain,
        small={name: sizes[1:] for name, sizes in _SMALL.items()},
        full={},
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),
    ),
    Spec(
        "first_conv.centred",
        _call,
        _centred,
        small=_SMALL,
        full={},
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),
    ),
    Spec(
        "first_conv.raw",
        partial(_call, activation=None),
        _raw,
        small=_SMALL,
        full={
            "train": Use(
                "first convolution and its filters' gradient, 1024 frames",
                (1024, 1024, FILTERS, *FRAME),
                _learned_cost(1024),
                learns=True,
            )
        },
        floors=_raw_floors,
        dtypes=(torch.float32, torch.bfloat16),
    ),
    Spec(
        "first_conv.raw_centred",
        partial(_call, activation=None),
        _raw_centred,
        small=_SMALL,
        full={},
        floors=_raw_floors,
        dtypes=(torch.float32, torch.bfloat16),
    ),
)


def _least_dots(given: Mapping[str, Any], num_warps: int, architecture: int) -> int:
    """What the product takes at least.

    A warp multiplies 16 x 8 tiles; on Hopper a group of four warps multiplies 64 rows by all columns, on Blackwell 128.
    Each is 16 deep, in tf32 8, three times for a float32 product.
    """
    rows, columns, depth = int(given["BLOCK_M"]), int(given["BLOCK_O"]), 4 * int(given["BLOCK_J"])
    is_float32 = given["out_ptr"].dtype == torch.float32
    steps = depth // (8 if is_float32 else 16) * (3 if is_float32 else 1)
    if architecture >= 90:
        return max(1, rows // (128 if architecture >= 100 else 64)) * steps
    return rows * columns // (16 * 8 * num_warps) * steps


def _least_gradient_dots(given: Mapping[str, Any], num_warps: int, architecture: int) -> int:
    """As `_least_dots`, of one tile: K rows, and as deep as the tile has pixels."""
    rows, columns, depth = 4 * int(given["BLOCK_J"]), int(given["BLOCK_O"]), int(given["BLOCK_M"])
    is_float32 = given["grad_ptr"].dtype == torch.float32
    steps = depth // (8 if is_float32 else 16) * (3 if is_float32 else 1)
    if architecture >= 90:
        return max(1, rows // (128 if architecture >= 100 else 64)) * steps
    return max(1, rows * columns // (16 * 8 * num_warps)) * steps


BUDGETS = {
    "_first_conv_fwd": Budget(216, 21, _least_dots),
    "_filters_bwd": Budget(240, 49, _least_gradient_dots),
    "_filters_reduce": Budget(128),
}
