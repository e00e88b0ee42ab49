"""The three ways through the sequence model agree; dropout, norms and sizes are where they belong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from storm_fast.config import ModelConfig
from storm_fast.model.transformer import KVCache, Transformer
from storm_fast.model.world_model import WorldModel
from tests import networks


@given(B=st.integers(1, 3), C=st.integers(1, 6), T=st.integers(1, 5), seed=st.integers(0, 99))
def test_prefill_and_cached_steps_equal_one_full_pass(B: int, C: int, T: int, seed: int) -> None:
    model = networks.world_model(seed).transformer.eval()
    z_BTZ = torch.nn.functional.one_hot(torch.randint(24, (B, C + T)), 24).float()
    action_BT = torch.randint(networks.ACTIONS, (B, C + T))
    with torch.no_grad():
        want_BTD = model(z_BTZ, action_BT)
        cache = model.new_cache(B, C + T)
        cache.k.fill_(torch.nan)
        cache.v.fill_(torch.nan)
        got = [model.prefill(z_BTZ[:, :C], action_BT[:, :C], cache)]
        got += [model.step(z_BTZ[:, t], action_BT[:, t], cache, t)[:, None] for t in range(C, C + T)]
    torch.testing.assert_close(torch.cat(got, 1), want_BTD, rtol=1e-4, atol=1e-5)


def test_more_steps_than_positions_is_an_error() -> None:
    model = networks.world_model().transformer
    with pytest.raises(ValueError, match="at most 64 steps"):
        model(torch.zeros(1, 65, 24), torch.zeros(1, 65, dtype=torch.int64))


def test_cache_has_the_shape_and_dtype_of_products() -> None:
    model = networks.world_model().transformer
    assert [x.shape for x in model.new_cache(3, 9)] == [(2, 3, 2, 9, 8)] * 2
    with torch.autocast("cpu", torch.bfloat16):
        cache: KVCache = model.new_cache(3, 9)
    assert cache.k.dtype == torch.bfloat16


def test_layer_norms_have_the_released_epsilons() -> None:
    model = networks.world_model()
    small = {"input_norm", "attention_norm", "feedforward_norm"}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-6 if name.split(".")[-1] in small else 1e-5), name


def test_dropout_acts_on_attention_and_both_branches_while_training_alone() -> None:
    model = Transformer(ModelConfig(stem_channels=2, latents=4, classes=6, width=16, heads=2, dropout=0.5), 3)
    z_BTZ, action_BT = torch.rand(2, 5, 24), torch.zeros(2, 5, dtype=torch.int64)
    model.train()
    assert not torch.equal(model(z_BTZ, action_BT), model(z_BTZ, action_BT))
    model.eval()
    assert torch.equal(model(z_BTZ, action_BT), model(z_BTZ, action_BT))
    # With all other dropout silenced, attention's own remains: the first step attends to itself alone, so a
    # dropped weight leaves exactly the residual path, which some of many sequences must show.
    model.train()
    for block in model.blocks:
        block.drop.p = 0.0
    many = model(torch.ones(64, 1, 24), torch.zeros(64, 1, dtype=torch.int64))
    assert len(torch.unique(many.detach().round(decimals=4), dim=0)) > 1


@pytest.mark.parametrize("layers", [2, 4, 6])
def test_layers_ablation(layers: int) -> None:
    model = networks.world_model(layers=layers)
    assert len(model.transformer.blocks) == layers
    assert model.transformer(torch.zeros(1, 3, 24), torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 16)


def test_full_size_has_the_published_number_of_parameters() -> None:
    model = WorldModel(ModelConfig(), 18, (64, 64, 3))

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(model) == 16_513_155
    assert count(model.encoder) == 690_624
    assert count(model.transformer) == 5_032_960
    assert count(model.posterior, model.prior) == 4_720_640
    assert count(model.decoder) == 4_884_931
    assert count(model.reward_head) == 657_151
    assert count(model.end_head) == 526_849
