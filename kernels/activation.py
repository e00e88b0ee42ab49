"""The activations that kernels have behind a normalisation or a convolution."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Activation = Literal["relu", "silu"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
}


def check(activation: str) -> None:
    """Raise ValueError for another name."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"want an activation of {', '.join(ACTIVATIONS)}; got {activation!r}")
