"""Every way to see the past gives the hidden states of the definition, which reads the whole sequence anew."""

import pytest
import torch
from torch import Tensor, nn

from storm_fast.model.past import Cached, Past, Reread, Stepwise
from tests import networks


@pytest.mark.parametrize("fast", [Cached, Stepwise])
def test_a_cache_agrees_with_reading_anew(fast: type[Past]) -> None:
    transformer = networks.world_model().eval().transformer
    B, C, T, G, classes = 3, 4, 5, networks.SMALL.latents, networks.SMALL.classes
    g = torch.Generator().manual_seed(0)
    class_BTG = torch.randint(classes, (B, C + T, G), generator=g)
    z_BTZ = nn.functional.one_hot(class_BTG, classes).flatten(2).float()
    action_BT = torch.randint(networks.ACTIONS, (B, C + T), generator=g)

    def hidden(past: Past) -> Tensor:
        h_BCD = past.read(z_BTZ[:, :C], action_BT[:, :C])
        steps = [past.step(z_BTZ[:, t], action_BT[:, t]) for t in range(C, C + T)]
        return torch.cat([h_BCD, torch.stack(steps, 1)], 1)

    with torch.no_grad():
        want_BTD = hidden(Reread(transformer, B, C + T))
        torch.testing.assert_close(want_BTD, transformer(z_BTZ, action_BT), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(hidden(fast(transformer, B, C + T)), want_BTD, rtol=1e-4, atol=1e-5)
