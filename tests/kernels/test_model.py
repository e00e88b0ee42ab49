"""The whole model on the kernels equals the whole model on the references: every op is wired as its reference is."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from storm_fast.data.replay import Batch
from storm_fast.engine.capture import Watch
from storm_fast.kernels.backend import using
from storm_fast.kernels.norm import reference
from storm_fast.model.agent import Trajectory
from storm_fast.model.imagine import Context, Uniforms, rollout
from tests import networks
from tests.kernels.harness import DEVICE, rand


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        torch.randint(256, (2, 5, 64, 64, 3), dtype=torch.uint8, generator=g).to(DEVICE),
        torch.randint(networks.ACTIONS, (2, 5), generator=g).to(DEVICE),
        torch.randn(2, 5, generator=g).to(DEVICE),
        (torch.rand(2, 5, generator=g) < 0.2).to(DEVICE),
    )


def on_both(call: Callable[[], list[Tensor]]) -> None:
    found = []
    for name in ("reference", "triton"):
        with using(name):  # type: ignore[arg-type]
            found.append(call())
    assert len(found[0]) == len(found[1]) > 0
    for want, got in zip(*found, strict=True):
        scale = want.double().abs().max().item() if want.numel() else 0.0
        # Float32 chains through the whole model: some hundred roundings, relative to the largest entry.
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("per", ["batch", "step"])
@pytest.mark.parametrize("centred", [False, True])
def test_world_model_update(per: Literal["batch", "step"], centred: bool) -> None:
    model = networks.world_model(free_nats_per=per, free_nats=0.05, center_frames=centred).to(DEVICE)
    u_2BTG = rand(2, 2, 5, networks.SMALL.latents, seed=1)

    def update() -> list[Tensor]:
        model.train()
        predicted = model(batch().obs_BTYXP, batch().action_BT, *u_2BTG)
        loss, metrics = model.loss(batch(), predicted)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        return [predicted.z_BTZ.detach(), predicted.h_BTD.detach(), *metrics.values(), *grads]

    on_both(update)


@pytest.mark.parametrize(
    "changes",
    [{}, {"bootstrap": "next", "imagined_end": "weighted", "critic_loss": "squared"}],
    ids=["storm", "otherwise"],
)
def test_rollout_and_agent_update(changes: dict[str, Any]) -> None:
    model, agent = networks.world_model().to(DEVICE).eval(), networks.agent(**changes).to(DEVICE)
    low, high = agent.return_low.clone(), agent.return_high.clone()
    G, B, T = networks.SMALL.latents, 4, 3
    u = Uniforms(rand(B, G, seed=1), rand(T, B, seed=2), rand(T, B, G, seed=3))

    def update() -> list[Tensor]:
        z_BCZ = model.encode(batch().obs_BTYXP[:, :4].reshape(4, 2, 64, 64, 3), rand(4, 2, G, seed=4))
        context = Context(z_BCZ, batch().action_BT[:, :4].reshape(4, 2))
        trajectory = rollout(model, agent, context, u)
        agent.return_low.copy_(low)
        agent.return_high.copy_(high)
        loss, metrics = agent.loss(trajectory)
        parameters = [p for p in agent.parameters() if p.requires_grad]
        return [z_BCZ, *trajectory, *metrics.values(), *torch.autograd.grad(loss, parameters)]

    on_both(update)


@pytest.mark.parametrize("critic_loss", ["two_hot", "squared"])
def test_an_agent_update_on_the_kernels_may_be_captured(critic_loss: Literal["two_hot", "squared"]) -> None:
    agent = networks.agent(critic_loss=critic_loss).to(DEVICE)
    F, B, T = agent.actor[0].in_features, 4, 3
    action_BT = torch.arange(B * T, device=DEVICE).view(B, T) % networks.ACTIONS
    ends_BT = (rand(B, T, seed=2) < 0.2).float()
    trajectory = Trajectory(rand(B, T + 1, F, seed=0), action_BT, rand(B, T, seed=1), ends_BT)
    parameters = [p for p in agent.parameters() if p.requires_grad]
    with using("triton"), Watch() as watch:
        grads = torch.autograd.grad(agent.loss(trajectory)[0], parameters)
    assert all(grad.isfinite().all() for grad in grads)
    names = {name.split(".")[0] for name, _ in watch.shapes}
    assert ("twohot_decode_backward" in names) == (critic_loss == "squared")


def test_outputs_without_gradient_get_no_zeros() -> None:
    model = networks.world_model().to(DEVICE)
    with using("triton"), Watch() as watch:
        predicted = model(batch().obs_BTYXP, batch().action_BT, rand(2, 5, networks.SMALL.latents, seed=1))
        before = len(watch.shapes)
        torch.autograd.grad(predicted.prior_logits_BTGC.sum(), model.transformer.parameters())
    names = [name.split(".")[0] for name, _ in watch.shapes[before:]]
    assert "attend_backward" in names
    assert not {"zeros", "new_zeros", "zeros_like"} & set(names)


@pytest.mark.parametrize("seed", range(3))
def test_states_and_logits_under_autocast_err_like_eager_autocast(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a GPU's autocast: both leave a normalisation in bf16, for the residual too. The kernels round nothing between a
    # sum, its normalisation and a ReLU.
    monkeypatch.setattr(reference, "NARROWED", (DEVICE,))
    model = networks.world_model().to(DEVICE).eval()
    c = networks.SMALL
    class_BTG = (c.classes * rand(4, 6, c.latents, seed=seed)).long()
    z_BTZ = torch.nn.functional.one_hot(class_BTG, c.classes).flatten(2).float()
    action_BT = torch.arange(24, device=DEVICE).view(4, 6) % networks.ACTIONS

    def predict(is_narrow: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=is_narrow):
            h_BTD = model.transformer(z_BTZ, action_BT)
            return h_BTD, model.reward_head(h_BTD)

    with using("reference"):
        exact, eager = predict(is_narrow=False), predict(is_narrow=True)
    with using("triton"):
        got = predict(is_narrow=True)
    for mine, narrow, want in zip(got, eager, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        error, usual = ((x.float() - want).norm().item() for x in (mine, narrow))
        assert error <= 2 * usual
    # No bound on gradients: roundings turn a ReLU off or on, which in 24 rows may be most of a weight's error.
    leaves = list(model.transformer.parameters())
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(got[0].float().square().sum(), leaves))
