"""Where the model predicts rewards and values: 255 bins."""

import torch
from torch import Tensor

from storm_fast.kernels.cost import Cost
from storm_fast.kernels.spec import Budget, Draw, Spec, Use
from storm_fast.kernels.twohot import decode, encode, loss, reference

V, ROW = 255, 256  # the bins, and the logits that a product with a margin makes of them
BF16_BYTES = 2


def _loss_inputs(draw: Draw, *sizes: int) -> tuple[Tensor, Tensor, int]:
    *shape, V = sizes  # the last two are the logits of a row and the bins among them
    return draw.leaf(draw.normal(*shape)), draw.normal(*shape[:-1], dtype=torch.float32, scale=9.0), V


def _decode_inputs(draw: Draw, *sizes: int) -> tuple[Tensor, int]:
    *shape, V = sizes
    return draw.leaf(draw.normal(*shape)), V


def _loss_floors(logits_NW: Tensor, _: Tensor, __: int, *grad_N: Tensor) -> tuple[float, ...]:
    # The loss is a difference of logits and of the logarithm of their sum; its gradient one of probabilities.
    return 2 * logits_NW.abs().max().item(), *(grad.abs().max().item() for grad in grad_N)


def _decode_floors(logits_NW: Tensor, V: int, *grad_N: Tensor) -> tuple[float, ...]:
    # Bins of up to 20 are weighed and added; symexp stretches the sum's rounding by its slope, exp(|e|) = 1 + |x|.
    slope_N = 1 + reference.decode(logits_NW.detach(), V).abs()
    p_NV = logits_NW.detach()[..., :V].float().softmax(-1)
    grads = ((grad.abs() * slope_N)[..., None] * p_NV * 2 * reference.BOUND for grad in grad_N)
    return reference.BOUND * slope_N.max().item(), *(x_NV.max().item() for x_NV in grads)


def _loss_cost(N: int) -> Cost:
    """Forward reads the logits, backward reads them and writes their gradient."""
    return Cost(flops=12 * N * V, bytes=3 * N * V * BF16_BYTES + 20 * N)


def _decode_cost(N: int) -> Cost:
    return Cost(flops=6 * N * V, bytes=N * V * BF16_BYTES + 4 * N)


SPECS = (
    Spec(
        "twohot.loss",
        loss,
        _loss_inputs,
        small={"few": (1, 3, 3), "odd": (2, 5, 63, 63), "margin": (3, 70, 63), "model": (3, ROW, V)},
        full={
            "model": Use("two-hot loss and gradient, 1024 x 255", (1024, ROW, V), _loss_cost(1024), learns=True),
            "critic": Use("two-hot loss and gradient, 16384 x 255", (16384, ROW, V), _loss_cost(16384), learns=True),
        },
        floors=_loss_floors,
    ),
    Spec(
        "twohot.encode",
        encode,
        lambda draw, *shape: (draw.normal(*shape[:-1], scale=9.0), shape[-1]),
        small={"one": (1, 2), "odd": (2, 5, 63), "model": (3, 255)},
        full={
            "imagine": Use("two-hot encoded, 1024 x 255", (1024, V), Cost(flops=10 * 1024, bytes=4 * 1024 * (V + 1)))
        },
        # The place between two bins is rounded at the size of the outermost, 20, and divided by the distance of two.
        floors=lambda x_N, V: ((V - 1) / 2,),
        dtypes=(torch.float32,),
    ),
    Spec(
        "twohot.decode",
        decode,
        _decode_inputs,
        small={"odd": (2, 5, 63, 63), "margin": (3, 70, 63), "model": (3, ROW, V)},
        full={
            "imagine": Use("two-hot decoded, 1024 x 255", (1024, ROW, V), _decode_cost(1024)),
            "critic": Use("two-hot decoded, 17408 x 255", (17408, ROW, V), _decode_cost(17408)),
        },
        floors=_decode_floors,
    ),
)

BUDGETS = {
    "_loss_fwd": Budget(48),
    "_loss_bwd": Budget(48),
    "_encode_fwd": Budget(40),
    "_decode_fwd": Budget(40),
    "_decode_bwd": Budget(48),
}
