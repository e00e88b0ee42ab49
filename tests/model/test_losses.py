"""The weighted sum of named losses, and the learned scales that may stand in it."""

import math

import pytest
import torch

from storm_fast.model.losses import Harmony, weighted_total


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


NAMES = ("reconstruction", "reward", "end", "dynamics", "representation")
WEIGHTS = dict(zip(NAMES, (2.0, 3.0, 1.0, 0.5, 0.1), strict=True))


def harmonised(values: torch.Tensor, log_scale: list[float]) -> tuple[torch.Tensor, Harmony]:
    """The total of these losses under these scales."""
    harmony = Harmony()
    with torch.no_grad():
        harmony.log_scale.copy_(torch.tensor(log_scale))
    total, told = harmony(dict(zip(NAMES, values.unbind(), strict=True)), WEIGHTS)
    for name, s in zip(("reconstruction", "reward", "kl"), log_scale, strict=True):
        torch.testing.assert_close(told[f"sigma_{name}"], torch.tensor(s).exp())
    return total, harmony


def test_each_group_is_divided_by_its_scale_and_ends_are_left_alone() -> None:
    """HarmonyDream's eq. 5 and its gradients, by hand."""
    values = torch.tensor([40.0, 0.3, 0.02, 6.0, 6.5], requires_grad=True)
    total, harmony = harmonised(values, [1.0, -2.0, 0.5])
    s = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    inner = torch.tensor([2 * 40.0, 3 * 0.3, 0.5 * 6.0 + 0.1 * 6.5], dtype=torch.float64)
    by_hand = (inner / s.exp() + (1 + s.exp()).log()).sum() + 0.02
    torch.testing.assert_close(total.double(), by_hand, rtol=1e-6, atol=1e-6)
    total.backward()
    at_s = -inner / s.exp() + s.exp() / (1 + s.exp())
    torch.testing.assert_close(harmony.log_scale.grad.double(), at_s, rtol=1e-6, atol=1e-6)  # type: ignore[union-attr]
    of_losses = torch.tensor([2.0, 3.0, 1.0, 0.5, 0.1])
    of_losses[[0, 1, 3, 4]] /= s.float().exp()[[0, 1, 2, 2]]
    torch.testing.assert_close(values.grad, of_losses)


def test_a_scale_settles_where_its_square_is_the_loss_times_one_more() -> None:
    values = torch.tensor([40.0, 0.01, 0.0, 4.0, 0.0])
    inner = [80.0, 0.03, 2.0]
    sigma = [(x + (x * x + 4 * x) ** 0.5) / 2 for x in inner]  # of sigma^2 = x (1 + sigma)
    total, harmony = harmonised(values, [math.log(x) for x in sigma])
    (gradient,) = torch.autograd.grad(total, harmony.log_scale)
    assert gradient.abs().max() < 1e-5
    away, harmony = harmonised(values, [math.log(2 * x) for x in sigma])
    assert away > total
    (gradient,) = torch.autograd.grad(away, harmony.log_scale)
    assert gradient.min() > 0.01
