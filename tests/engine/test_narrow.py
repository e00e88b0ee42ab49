"""The bf16 copies of weights: what autocast makes of the parameters, once an update."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from storm_fast.config import preset
from storm_fast.engine import learn
from storm_fast.engine.narrow import Narrow, narrowed
from storm_fast.engine.optimizer import Optimizer
from storm_fast.engine.precision import choose
from storm_fast.model import margin
from storm_fast.model.agent import Agent, Trajectory
from storm_fast.model.world_model import WorldModel
from tests import networks

BF16 = choose("cpu", "bf16")


def some_agent() -> Agent:
    torch.manual_seed(0)
    config = replace(preset("lean").agent, agent_width=16, agent_updates=2)
    return Agent(config, 32, 5, 15, (4, 4))


def trajectory() -> Trajectory:
    z_BSZ = torch.nn.functional.one_hot(torch.randint(4, (8, 5, 4)), 4).flatten(2).bfloat16()
    state_BSF = torch.cat([z_BSZ, torch.randn(8, 5, 16).bfloat16()], -1)
    return Trajectory(state_BSF, torch.randint(5, (8, 4)), torch.randn(8, 4), torch.rand(8, 4))


def learned(model: WorldModel | Agent, narrow: bool, updates: int = 3) -> list[Tensor]:
    """Losses of some updates and then all that they made."""
    optimizer = Optimizer(model, 1e-2, eps=1e-5, clip=1.0, narrow=narrow)
    g = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    seen = []
    for _ in range(updates):
        if isinstance(model, WorldModel):
            metrics, _ = learn.update_world_model(model, optimizer, networks.batch(), g, BF16)
            seen.append(metrics["total"])
        else:
            seen += [m["total"] for m in learn.update_agent(model, optimizer, trajectory(), BF16)]
    return seen + [x.clone() for x in model.state_dict().values()]


def world_model() -> WorldModel:
    model = networks.world_model()
    model.use_channels_last()
    return model


@pytest.mark.parametrize("make", [some_agent, world_model])
def test_updates_equal_those_of_autocast_to_the_bit(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(make)
    model = make()
    want = learned(copy.deepcopy(model), narrow=False)
    with monkeypatch.context() as patch:
        patch.setattr(margin, "OUTPUTS", 1)
        patch.setattr(margin, "INPUTS", 1)
        assert all(map(torch.equal, learned(copy.deepcopy(model), narrow=True), want))
    # With margins the products may add in another order.
    for got, expected in zip(learned(model, narrow=True), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("make", [some_agent, world_model])
def test_margins_stay_zero_and_are_nowhere_else(make: object) -> None:
    assert callable(make)
    model = make()
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    learned(model, narrow=True)
    assert {name: x.shape for name, x in model.state_dict().items()} == shapes
    narrow = Narrow(model)
    with narrow.standing():
        standing = dict(model.named_parameters())
        wider = {name: x for name, x in standing.items() if x.shape != shapes[name]}
        assert wider
        for name, x in wider.items():
            assert x.dtype == torch.bfloat16
            inner = x[tuple(map(slice, shapes[name]))]
            assert torch.equal(inner.float().abs().sum(), x.float().abs().sum())
    assert {x.dtype for x in model.parameters()} == {torch.float32}


def test_margins_fill_blocks() -> None:
    head, plain = margin.WideOut(512, 255), torch.nn.Linear(512, 255)
    assert margin.shape_with_margin(head, head.weight) == (256, 512)
    assert margin.shape_with_margin(head, head.bias) == (256,)
    assert margin.shape_with_margin(plain, plain.weight) == (255, 512)
    mixer = networks.world_model().transformer.mixer[0]
    assert margin.shape_with_margin(mixer, mixer.weight)[1] % 64 == 0


def test_parameters_are_back_after_an_error_and_copies_follow_them() -> None:
    agent = some_agent()
    optimizer = Optimizer(agent, 1e-2, eps=1e-5, clip=1.0, narrow=True)
    before = list(agent.parameters())
    with pytest.raises(KeyError), optimizer.standing():
        raise KeyError
    assert all(a is b for a, b in zip(agent.parameters(), before, strict=True))
    with torch.no_grad():
        agent.critic[0].weight.fill_(0.75)
    optimizer.load_state_dict(optimizer.state_dict())
    with optimizer.standing():
        assert torch.equal(agent.critic[0].weight.unique(), torch.tensor([0.75], dtype=torch.bfloat16))


def test_what_changes_copies_in_the_place_of_parameters_is_not_lost_without_a_word() -> None:
    agent = some_agent()
    optimizer = Optimizer(agent, 1e-2, eps=1e-5, clip=1.0, narrow=True)
    with optimizer.standing(), pytest.raises(RuntimeError, match="want parameters to round; got their copies"):
        optimizer.refresh()


def test_what_only_acts_reads_copies_too_and_the_same_latents() -> None:
    model = world_model().eval()
    b = networks.batch()
    u_BTG = torch.rand(*b.action_BT.shape, 4)
    found = []
    for precision in (choose("cpu", "fp32"), BF16):
        with torch.no_grad(), narrowed(precision, model), BF16.autocast():
            assert (model.encoder.kept is not None) == (precision == BF16)
            assert model.posterior.weight.dtype == precision.dtype
            found.append(model.encode(b.obs_BTYXP, u_BTG))
    assert torch.equal(*found)
    assert model.encoder.kept is None
