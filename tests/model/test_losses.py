"""The weighted sum of named losses: what it adds, in which order, and what it refuses."""

import pytest
import torch

from storm_fast.model.losses import weighted_total


def test_the_total_is_the_sum_in_the_order_of_the_losses() -> None:
    """Bit for bit, value and gradient: these terms give another float32 in any other order."""
    terms = torch.tensor([1e8, 3.7, -1e8, 0.3], requires_grad=True)
    names = ("a", "b", "c", "d")
    weights = dict(zip(names, (1.0, 0.5, 1.0, -2.0), strict=True))
    total = weighted_total(dict(zip(names, terms.unbind(), strict=True)), weights)
    a, b, c, d = terms.unbind()
    assert torch.equal(total, a + 0.5 * b + c - 2.0 * d)
    assert not torch.equal(total, a + c + 0.5 * b - 2.0 * d)
    (gradient,) = torch.autograd.grad(total, terms)
    assert gradient.tolist() == [1.0, 0.5, 1.0, -2.0]


@pytest.mark.parametrize("weights", [{}, {"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_every_loss_has_a_weight_and_every_weight_a_loss(weights: dict[str, float]) -> None:
    with pytest.raises(AssertionError, match=r"want a weight for each of \['a', 'b'\]"):
        weighted_total({"a": torch.ones(()), "b": torch.ones(())}, weights)
