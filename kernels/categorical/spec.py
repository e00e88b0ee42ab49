"""Where the model draws latents and actions, and the KL losses of its latents: 32 variables of 32 classes."""

import math
from functools import partial

from torch import Tensor

from storm_fast.kernels.categorical import draw as draw_classes
from storm_fast.kernels.categorical import kl_losses, reference, sample
from storm_fast.kernels.cost import Cost
from storm_fast.kernels.spec import Budget, Draw, Spec, Use

G, C, ACTIONS = 32, 32, 18
UNIMIX = 0.01
BF16_BYTES = 2


def _clear(draw: Draw, logits_NC: Tensor, unimix: float) -> Tensor:
    """Uniform draws that land in the middle half of a class: at its edges two orders of summing may differ."""
    p_NC = reference.probabilities(logits_NC.detach(), unimix)
    class_N1 = reference.draw(logits_NC.detach(), draw.uniform(*logits_NC.shape[:-1]), unimix)[..., None]
    below_N = (p_NC.cumsum(-1) - p_NC).gather(-1, class_N1).squeeze(-1)
    return below_N + p_NC.gather(-1, class_N1).squeeze(-1) * (0.25 + 0.5 * draw.uniform(*logits_NC.shape[:-1]))


def _latents(draw: Draw, B: int, G: int, C: int) -> tuple[Tensor, Tensor]:
    logits_BGC = draw.normal(B, G, C)
    return draw.leaf(logits_BGC), _clear(draw, logits_BGC, UNIMIX)


def _actions(draw: Draw, N: int, A: int) -> tuple[Tensor, Tensor]:
    logits_NA = draw.normal(N, A)
    return logits_NA, _clear(draw, logits_NA, 0.0)


def _both(draw: Draw, B: int, T: int, G: int, C: int) -> tuple[Tensor, Tensor]:
    return draw.leaf(draw.normal(B, T, G, C)), draw.leaf(draw.normal(B, T, G, C))


def _kl(post_BTGC: Tensor, prior_BTGC: Tensor, per: str) -> tuple[Tensor, ...]:
    """As the world model's loss cuts its windows: what is predicted, and from the step before."""
    return kl_losses(post_BTGC[:, 1:], prior_BTGC[:, :-1], UNIMIX, 1.0, per)  # type: ignore[arg-type]


def _sample_floors(_: Tensor, __: Tensor, *grad_BGC: Tensor) -> tuple[float, ...]:
    return 0.0, *(grad.abs().max().item() for grad in grad_BGC)


def _kl_floors(post_BTGC: Tensor, _: Tensor, *grads: Tensor) -> tuple[float, ...]:
    # Logarithms of at most log(C / unimix) cancel, in sums over G and C; gradients are means over the rows.
    B, T, G, C = post_BTGC.shape
    log = math.log(C / UNIMIX)
    of_gradient = log / (B * (T - 1)) * max((grad.abs().item() for grad in grads), default=0.0)
    return G * log, G * log, G * log, of_gradient, of_gradient


def _sample_cost(rows: int) -> Cost:
    return Cost(flops=7 * rows * G * C, bytes=rows * G * (2 * C * BF16_BYTES + 4))


def _draw_cost(rows: int) -> Cost:
    return Cost(flops=7 * rows * ACTIONS, bytes=rows * (ACTIONS * BF16_BYTES + 12))


# Forward reads both, backward reads both and writes both.
_KL_USE = Use(
    "KL losses and gradients, 16 x 63 x 32 x 32",
    (16, 64, G, C),
    Cost(flops=60 * 16 * 63 * G * C, bytes=6 * 16 * 63 * G * C * BF16_BYTES),
    learns=True,
)

SPECS = (
    Spec(
        "categorical.sample",
        partial(sample, unimix=UNIMIX),
        _latents,
        small={"one": (1, 1, 2), "odd": (5, 3, 33), "model": (3, 32, 32)},
        full={
            "act": Use("latents drawn, 1 x 32 x 32", (1, G, C), _sample_cost(1)),
            "imagine": Use("latents drawn, 1024 x 32 x 32", (1024, G, C), _sample_cost(1024)),
            "context": Use("latents drawn, 8192 x 32 x 32", (8192, G, C), _sample_cost(8192)),
            "train": Use(
                "latents drawn, and gradient, 1024 x 32 x 32",
                (1024, G, C),
                # Forward reads logits and writes the sample; backward reads logits and gradient and writes one.
                Cost(flops=13 * 1024 * G * C, bytes=1024 * G * (5 * C * BF16_BYTES + 4)),
                learns=True,
            ),
        },
        floors=_sample_floors,
    ),
    Spec(
        "categorical.draw",
        partial(draw_classes, unimix=0.0),
        _actions,
        small={"one": (1, 1), "odd": (65, 7)},
        full={
            "act": Use("actions drawn, 1 x 18", (1, ACTIONS), _draw_cost(1)),
            "imagine": Use("actions drawn, 1024 x 18", (1024, ACTIONS), _draw_cost(1024)),
        },
    ),
    Spec(
        "categorical.kl_losses",
        partial(_kl, per="batch"),
        _both,
        small={"one": (1, 2, 8, 2), "odd": (2, 4, 5, 33)},
        full={"train": _KL_USE},
        floors=_kl_floors,
    ),
    Spec(
        "categorical.kl_losses_per_step",
        partial(_kl, per="step"),
        _both,
        small={"odd": (2, 4, 5, 33), "model": (1, 3, 32, 32)},
        full={},
        floors=_kl_floors,
    ),
)

BUDGETS = {
    "_sample_fwd": Budget(64),  # keeping NaN takes 55 on sm_86
    "_sample_bwd": Budget(48),
    "_kl_fwd": Budget(48),
    "_kl_reduce": Budget(40),
    "_kl_bwd": Budget(72),
}
