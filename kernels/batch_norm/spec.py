"""Where the world model normalises a batch: behind the encoder's convolutions and before the decoder's."""

from functools import partial

import torch
from torch import Tensor

from storm_fast.kernels.activation import Activation
from storm_fast.kernels.batch_norm import batch_norm
from storm_fast.kernels.cost import Cost
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

MOMENTUM, EPS = 0.1, 1e-5
BF16_BYTES = 2


def _inputs(draw: Draw, N: int, C: int, size: int, layout: torch.memory_format) -> tuple[Tensor, ...]:
    """Scales of 0.5 to 0.75 and shifts of 6 or -6: no unit value is 8, so none lies at the corner of a ReLU."""
    x_NCYX = (2 + 3 * draw.normal(N, size, size, C)).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    shift_C = 6.0 - 12.0 * (torch.arange(C, device=draw.device) % 2).float()
    return (
        draw.leaf(x_NCYX),
        draw.leaf(0.5 + 0.25 * draw.uniform(C)),
        draw.leaf(shift_C),
        draw.normal(C, dtype=torch.float32),
        draw.uniform(C),
    )


def _call(
    x_NCYX: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    running_mean_C: Tensor,
    running_var_C: Tensor,
    activation: Activation,
) -> tuple[Tensor, ...]:
    y_NCYX = batch_norm(x_NCYX, weight_C, bias_C, running_mean_C, running_var_C, MOMENTUM, EPS, activation)
    return y_NCYX, running_mean_C, running_var_C


def _floors(x_NCYX: Tensor, weight_C: Tensor, *rest: Tensor) -> tuple[float, ...]:
    # Deviations are taken from values of up to 20; in the gradient of x the incoming one cancels with its mean and its
    # projection on the unit values, and those of weight and bias are sums over rows, of terms of both signs.
    largest, spread, R = x_NCYX.abs().max().item(), 8.0, x_NCYX.numel() // weight_C.numel()
    grad = rest[3].abs().max().item() if len(rest) > 3 else 0.0
    row = grad * spread
    return spread + largest, largest, largest**2, row, R**0.5 * row, R**0.5 * grad


def _use(C: int, size: int) -> Use:
    """Forward reads x and writes y; backward reads x and the incoming gradient and writes one."""
    N = 1024
    elements = N * C * size * size
    return Use(
        f"batch norm and ReLU, forward and backward, {N} x {C} x {size} x {size}",
        (N, C, size),
        Cost(flops=25 * elements, bytes=5 * elements * BF16_BYTES),
        learns=True,
    )


_SMALL = {"one": (2, 1, 8), "odd": (3, 5, 7), "wide": (2, 65, 9), "model": (2, 32, 8)}

SPECS = (
    Spec(
        "batch_norm.relu",
        partial(_call, activation="relu"),
        partial(_inputs, layout=torch.channels_last),
        small=_SMALL,
        full={f"{C}": _use(C, 1024 // C) for C in (32, 64, 128, 256)},
        floors=_floors,
    ),
    Spec(
        "batch_norm.silu",
        partial(_call, activation="silu"),
        partial(_inputs, layout=torch.channels_last),
        small=_SMALL,
        full={},
        floors=_floors,
    ),
    Spec(
        "batch_norm.contiguous",
        partial(_call, activation="relu"),
        partial(_inputs, layout=torch.contiguous_format),
        small={"odd": (3, 5, 7)},
        full={},
        floors=_floors,
    ),
)

BUDGETS = {
    "_stats_fwd": Budget(96, 8),
    "_stats_reduce": Budget(128, 8),
    "_apply_fwd": Budget(96, 8),
    "_sums_bwd": Budget(128, 8),
    "_sums_reduce": Budget(128, 8),
    "_apply_bwd": Budget(128, 8),
}
