"""Properties of the perceptron and of the chain of layers it is."""

import pytest
import torch
from torch import nn

from storm_fast.model.mlp import Chain, linear_relu, mlp


def layers() -> list[nn.Module]:
    """Every order of linear layer, normalisation and ReLU, all weights random."""
    made: list[nn.Module] = [nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.LayerNorm(5), nn.ReLU(), nn.ReLU()]
    made += [nn.LayerNorm(5), nn.LayerNorm(5, eps=0.1), nn.Linear(5, 5), nn.LayerNorm(5)]
    for layer in made:
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("is_autocast", [False, True])
def test_a_chain_is_its_layers_in_a_row(is_autocast: bool) -> None:
    made = layers()
    x_ND = torch.randn(7, 5)
    found = []
    for chain in (nn.Sequential(*made), Chain(*made), Chain(*made[:3]), nn.Sequential(*made[:3])):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            y_ND = chain(x_ND)
        found.append((y_ND, *torch.autograd.grad(y_ND.float().square().sum(), list(chain.parameters()))))
    for one, other in ((0, 1), (2, 3)):
        (y_ND, *gradients), (z_ND, *others) = found[one], found[other]
        assert torch.equal(y_ND, z_ND)
        for a, b in zip(gradients, others, strict=True):
            # Under autocast a CPU's own layer norm sums weight's gradients in bf16, over 7 rows; ours in float32.
            torch.testing.assert_close(a, b, rtol=4 * 2**-8 if is_autocast else 0, atol=0.02 if is_autocast else 0)


def test_parameters_keep_the_names_that_checkpoints_use() -> None:
    assert list(mlp(3, 5, 2).state_dict()) == [
        *("0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight", "6.bias")
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_and_its_relu_are_the_same_with_and_without_a_gradient(dtype: torch.dtype) -> None:
    layer, x_ND = nn.Linear(6, 5).to(dtype), torch.randn(2, 3, 6, dtype=dtype)
    x_ND[1, 2] = torch.nan
    want_ND = torch.relu(layer(x_ND))
    assert linear_relu(layer, x_ND).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(linear_relu(layer, x_ND), want_ND.detach(), equal_nan=True)
        assert linear_relu(layer, x_ND)[1, 2].isnan().all()
        wide = layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert linear_relu(wide, x_ND).dtype == torch.bfloat16
