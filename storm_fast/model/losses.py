"""Losses and their weights are dictionaries with the same keys; training minimises the weighted sum."""

from collections.abc import Mapping

from torch import Tensor


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
