"""Losses and their weights are dictionaries with the same keys; training minimises the weighted sum."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weighted_total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of all losses, each times the weight of its name, 0-d; added in the order of `losses`.

    A weight of 1 costs no multiplication; a negative weight maximises its term.
    """
    assert losses.keys() == weights.keys(), f"want a weight for each of {list(losses)}; got {list(weights)}"
    first, *others = (loss if weights[name] == 1 else weights[name] * loss for name, loss in losses.items())
    total = first
    for term in others:
        total = total + term
    return total


_GROUPS = {"reconstruction": ("reconstruction",), "reward": ("reward",), "kl": ("dynamics", "representation")}
"""What is scaled together: one sigma for both terms of the KL, which share their value"""


class Harmony(nn.Module):
    """Learned scales sigma = exp(s) of groups of losses, which keep each near 1 (HarmonyDream, Ma et al. 2024, eq. 5).

    A loss L becomes L / sigma + log(1 + sigma); at a constant L > 0 the minimum lies where sigma^2 = L (1 + sigma), so
    small losses are raised and large ones lowered. With log sigma in its place a loss near 0 would get a boundless
    weight. Starts at sigma = 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(len(_GROUPS)))

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, in which losses of no group keep their weights, and each group's sigma, all 0-d float32."""
        sigma = dict(zip(_GROUPS, self.log_scale.exp().unbind(), strict=True))
        grouped = {name for names in _GROUPS.values() for name in names}
        total = torch.log1p(self.log_scale.exp()).sum()
        for group, names in _GROUPS.items():
            inner = weighted_total({n: losses[n] for n in names}, {n: weights[n] for n in names})
            total = total + inner / sigma[group]
        others = {name: loss for name, loss in losses.items() if name not in grouped}
        total = total + weighted_total(others, {name: weights[name] for name in others})
        return total, {f"sigma_{group}": value for group, value in sigma.items()}
