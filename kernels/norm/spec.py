"""Where the model normalises layers: the heads with a ReLU, the Transformer with a residual or its positions."""

from functools import partial

import torch
from torch import Tensor

from storm_fast.kernels.cost import Cost
from storm_fast.kernels.norm import layer_norm
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

D = 512
BF16_BYTES = 2


def _weights(draw: Draw, D: int) -> tuple[Tensor, Tensor]:
    """Scales of 0.5 to 0.75 and shifts of 6 or -6.

    Unit values beyond 8 do not happen, so each column is cut off whole or not at all: at the ReLU's corner two ways of
    rounding may fall to either side.
    """
    shift_D = 12.0 * (draw.uniform(D) < 0.5).float() - 6.0
    return draw.leaf(0.5 + 0.25 * draw.uniform(D)), draw.leaf(shift_D)


def _plain(draw: Draw, N: int, D: int) -> tuple[Tensor, ...]:
    return draw.leaf(draw.normal(N, D)), *_weights(draw, D)


def _residual(draw: Draw, N: int, D: int) -> tuple[Tensor, ...]:
    return *_plain(draw, N, D), draw.leaf(draw.normal(N, D))


def _positions(draw: Draw, B: int, T: int, D: int) -> tuple[Tensor, ...]:
    x_BTD, weight_D, bias_D = draw.leaf(draw.normal(B, T, D)), *_weights(draw, D)
    return x_BTD, weight_D, bias_D, draw.leaf(draw.normal(T, D, dtype=torch.float32))


def _call(
    x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, residual_ND: Tensor | None = None, relu: bool = False
) -> Tensor:
    # Under autocast, as the model calls it: CUDA's own layer_norm refuses weights of another dtype.
    is_narrow = x_ND.dtype != torch.float32
    with torch.autocast(x_ND.device.type, x_ND.dtype if is_narrow else None, enabled=is_narrow):
        return layer_norm(x_ND, weight_D, bias_D, 1e-6, residual_ND, relu)


def _floors(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor, *rest: Tensor) -> tuple[float, ...]:
    # In a row's gradient the incoming one cancels with its mean and with its projection on the unit values, both up to
    # their size; a column's is a sum over rows, of terms of both signs.
    N, spread = x_ND[..., 0].numel(), 8.0
    weight = weight_D.abs().max().item()
    grad = rest[-1].abs().max().item() if rest else 0.0
    row, of_weight, of_bias = grad * weight * spread, N**0.5 * grad * spread, N**0.5 * grad
    of_residual = (row * N**0.5,) if len(rest) > 1 else ()
    return weight * spread + bias_D.abs().max().item(), row, of_weight, of_bias, *of_residual


def _forward_uses(kind: str, tensors: int) -> dict[str, Use]:
    """Without gradients, of as many tensors read and written."""
    return {
        name: Use(
            f"layer norm and {kind}, {N} x {D}",
            (N, D),
            Cost(flops=8 * N * D, bytes=tensors * N * D * BF16_BYTES + 8 * D),
        )
        for name, N in {"act": 1, "imagine": 1024, "context": 8192}.items()
    }


def _both_cost(N: int, tensors: int) -> Cost:
    """Forward reads its inputs and writes one result; backward reads them and the incoming gradient, writes one."""
    return Cost(flops=25 * N * D, bytes=tensors * N * D * BF16_BYTES + 24 * D)


def _positions_use(B: int, T: int) -> Use:
    cost = Cost(flops=8 * B * T * D, bytes=2 * B * T * D * BF16_BYTES + 4 * T * D + 8 * D)
    return Use(f"layer norm and positions, {B} x {T} x {D}", (B, T, D), cost)


_SMALL = {"narrow": (3, 7), "odd": (17, 63), "widest": (2, 4096), "model": (3, 512)}

SPECS = (
    Spec(
        "norm.relu",
        partial(_call, relu=True),
        _plain,
        small=_SMALL,
        full={
            **_forward_uses("relu", tensors=2),
            "agent": Use(
                "layer norm and relu, forward and backward, 16384 x 512", (16384, D), _both_cost(16384, 5), learns=True
            ),
        },
        floors=_floors,
        tolerance=2e-2,
    ),
    Spec(
        "norm.residual",
        _call,
        _residual,
        small=_SMALL,
        full={
            **_forward_uses("residual", tensors=3),
            "model": Use(
                "layer norm and residual, forward and backward, 1024 x 512", (1024, D), _both_cost(1024, 7), learns=True
            ),
        },
        floors=_floors,
        tolerance=2e-2,  # some forms round the sum with x to bf16, before it is normalised
    ),
    Spec(
        "norm.positions",
        _call,
        _positions,
        small={"odd": (3, 5, 63), "step": (3, 1, 512)},
        full={
            "imagine": _positions_use(1024, 1),
            "context": _positions_use(1024, 8),
            "model": _positions_use(16, 64),
        },
        floors=_floors,
    ),
)

BUDGETS = {"_norm_fwd": Budget(80, 8), "_norm_bwd": Budget(136, 8), "_norm_reduce": Budget(64)}
