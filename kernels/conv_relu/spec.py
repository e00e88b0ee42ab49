"""Where convolutions are folded: the encoder's second to fourth, over the frames of a rollout's contexts."""

from functools import partial

import torch
from torch import Tensor

from storm_fast.kernels.activation import Activation
from storm_fast.kernels.conv_relu import conv_relu
from storm_fast.kernels.cost import Cost
from storm_fast.kernels.spec import Budget, Draw, Spec, Use


def _inputs(draw: Draw, N: int, I: int, O: int, size: int) -> tuple[Tensor, ...]:  # noqa: E741  # axes
    x_NIYX = draw.uniform(N, size, size, I).to(draw.dtype).permute(0, 3, 1, 2)
    weight_OIYX = draw.normal(O, I, 4, 4, scale=(16 * I) ** -0.5).contiguous(memory_format=torch.channels_last)
    return x_NIYX, weight_OIYX, draw.normal(O, dtype=torch.float32)


def _call(x_NIYX: Tensor, weight_OIYX: Tensor, bias_O: Tensor, activation: Activation = "relu") -> Tensor:
    # Under autocast, as the model calls it: a convolution refuses a bias of another dtype.
    is_narrow = x_NIYX.dtype != torch.float32
    with torch.no_grad(), torch.autocast(x_NIYX.device.type, x_NIYX.dtype if is_narrow else None, enabled=is_narrow):
        return conv_relu(x_NIYX, weight_OIYX, bias_O, (2, 2), (1, 1), activation)


def _floors(x_NIYX: Tensor, weight_OIYX: Tensor, bias_O: Tensor) -> tuple[float, ...]:
    # The products that are added, with the bias.
    terms = torch.nn.functional.conv2d(x_NIYX[:1].float().abs(), weight_OIYX.float().abs(), None, 2, 1)
    return (terms.max().item() + bias_O.abs().max().item(),)


SPECS = (
    Spec(
        "conv_relu.conv_relu",
        _call,
        _inputs,
        small={"one": (1, 1, 8, 2), "odd": (2, 3, 5, 9), "last": (1, 8, 16, 8)},
        full={
            # Of imagination's 8,192 frames an eighth, so that a CPU has done too.
            "context": Use(
                "convolution 32 to 64, bias, ReLU, 1024 frames",
                (1024, 32, 64, 32),
                Cost(2 * 1024 * 64 * 16 * 16 * 32 * 16, 2 * 1024 * (32 * 32 * 32 + 64 * 16 * 16)),
            )
        },
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),  # a CPU has no convolution of float16
    ),
    Spec(
        "conv_relu.silu",
        partial(_call, activation="silu"),
        _inputs,
        small={"odd": (2, 3, 5, 9), "last": (1, 8, 16, 8)},
        full={},
        floors=_floors,
        dtypes=(torch.float32, torch.bfloat16),
    ),
)

BUDGETS = {"_bias_relu_fwd": Budget(72)}
