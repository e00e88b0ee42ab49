"""The agent's losses written out, and each of its settings in both positions."""

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from storm_fast.engine.learn import update_agent
from storm_fast.engine.optimizer import Optimizer
from storm_fast.engine.precision import choose
from storm_fast.kernels import twohot
from storm_fast.kernels.lambda_return import lambda_return, reach_weights
from storm_fast.model.agent import Agent, Trajectory, of_actions, percentiles
from tests import networks

F = networks.SMALL.latents * networks.SMALL.classes + networks.SMALL.width


def trajectory(B: int = 8, T: int = 5, ends: bool = True) -> Trajectory:
    g = torch.Generator().manual_seed(2)
    return Trajectory(
        torch.randn(B, T + 1, F, generator=g),
        torch.randint(networks.ACTIONS, (B, T), generator=g),
        3 * torch.randn(B, T, generator=g),
        (torch.rand(B, T, generator=g) < 0.3).float() * ends,
    )


def by_hand(agent: Agent, t: Trajectory, **changes: Any) -> dict[str, torch.Tensor]:
    """Equations 7a and 7b for the settings in `changes`; the released code's where none is given."""
    value_BS, slow_BS = twohot.decode(agent.critic(t.state_BSF)), twohot.decode(agent.slow_critic(t.state_BSF))
    bootstrap = changes.get("bootstrap", "current")
    return_BT = lambda_return(t.reward_BT, t.end_BT, value_BS, 0.985, 0.95, bootstrap).detach()
    slow_BT = lambda_return(t.reward_BT, t.end_BT, slow_BS, 0.985, 0.95, bootstrap).detach()
    if changes.get("critic_target") == "value":
        slow_BT = slow_BS[:, :-1].detach()
    low, high = (sorted(return_BT.flatten().tolist())[max(1, int(q * return_BT.numel())) - 1] for q in (0.05, 0.95))
    spread = (high - low) * (1.0 if changes.get("return_scale") == "batch" else 0.01)
    weight_BT = reach_weights(t.end_BT, 0.985) if changes.get("imagined_end") == "weighted" else torch.ones(())
    log_BTA = agent.actor(t.state_BSF[:, :-1]).log_softmax(-1)
    log_BT = log_BTA.gather(-1, t.action_BT[..., None])[..., 0]
    advantage_BT = (return_BT - value_BS[:, :-1].detach()) / max(1.0, spread)
    logits_BTV = agent.critic(t.state_BSF[:, :-1])

    def error(target_BT: torch.Tensor) -> torch.Tensor:
        if changes.get("critic_loss") == "squared":
            return (weight_BT * (value_BS[:, :-1] - target_BT) ** 2).mean()
        return (weight_BT * twohot.loss(logits_BTV, target_BT)).mean()

    parts = {
        "policy": -(weight_BT * log_BT * advantage_BT).mean(),
        "entropy": -(weight_BT * (log_BTA.exp() * log_BTA).sum(-1)).mean(),
        "value": error(return_BT),
        "slow_value": error(slow_BT),
        "return_spread": torch.tensor(spread),
    }
    parts["total"] = parts["policy"] + parts["value"] + parts["slow_value"] - 3e-4 * parts["entropy"]
    return {name: value.detach() for name, value in parts.items()}


SETTINGS: list[dict[str, Any]] = [
    {},
    {"bootstrap": "next"},
    {"critic_target": "value"},
    {"critic_loss": "squared"},
    {"return_scale": "batch"},
    {"imagined_end": "weighted"},
]


def test_each_setting_is_its_equation_and_differs_from_the_released_code() -> None:
    plain: dict[str, torch.Tensor] = {}
    for changes in SETTINGS:
        agent = networks.agent(**changes)
        want = by_hand(agent, trajectory(), **changes)
        _, got = agent.loss(trajectory())
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=f"{changes}: {name}")
        plain = plain or want
        assert not changes or any(not torch.isclose(want[name], plain[name]) for name in want), changes


def test_gradients_reach_actor_and_critic_and_stop_at_the_slow_critic() -> None:
    agent = networks.agent()
    agent.loss(trajectory())[0].backward()
    assert agent.actor[0].weight.grad.abs().sum() > 0
    assert agent.critic[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in agent.slow_critic.parameters())


def test_policy_gradient_raises_the_chance_of_what_was_good() -> None:
    agent = networks.agent()
    t = trajectory(B=64, T=1, ends=False)
    t = t._replace(reward_BT=torch.where(t.action_BT == 2, 5.0, -5.0))
    before = agent.actor(t.state_BSF[:, 0]).softmax(-1)[:, 2].mean()
    optimizer = torch.optim.SGD(agent.actor.parameters(), lr=0.1)
    agent.loss(t)[0].backward()
    optimizer.step()
    assert agent.actor(t.state_BSF[:, 0]).softmax(-1)[:, 2].mean() > before


def test_the_critic_goes_ahead_of_the_actor() -> None:
    agent, plain = networks.agent(critic_warmup=2), networks.agent()
    adam = torch.optim.Adam(agent.parameters(), lr=1e-2)
    for update in range(4):
        before = copy.deepcopy(agent.state_dict())
        adam.zero_grad(set_to_none=False)
        agent.loss(trajectory())[0].backward()
        adam.step()
        moved = {name.split(".")[0] for name, x in agent.state_dict().items() if not torch.equal(x, before[name])}
        assert ("actor" in moved) == (update >= 2)
        assert "critic" in moved
    assert agent.updates == 4
    # Once the actor learns, the loss is that of an agent without a warm-up.
    plain.load_state_dict({name: x for name, x in agent.state_dict().items() if name != "updates"})
    torch.testing.assert_close(agent.loss(trajectory())[0], plain.loss(trajectory())[0], rtol=0, atol=0)


def test_moving_percentiles_start_at_zero_and_move_by_a_hundredth() -> None:
    agent = networks.agent()
    _, first = agent.loss(trajectory())
    low, high = agent.return_low.clone(), agent.return_high.clone()
    torch.testing.assert_close(first["return_spread"], high - low)
    agent.loss(trajectory())
    torch.testing.assert_close(agent.return_high, high * 1.99, rtol=1e-5, atol=1e-7)


def test_slow_critic_moves_by_a_fiftieth() -> None:
    agent = networks.agent()
    slow, fast = copy.deepcopy(agent.slow_critic[0].weight), agent.critic[0].weight
    agent.update_slow_critic()
    torch.testing.assert_close(agent.slow_critic[0].weight, 0.98 * slow + 0.02 * fast)


@given(n=st.integers(1, 60), seed=st.integers(0, 99))
def test_percentile_counts_from_one_without_interpolation(n: int, seed: int) -> None:
    x_N = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    for q in (0.05, 0.5, 0.95):
        assert float(percentiles(x_N, q)[0]) == sorted(x_N.tolist())[max(1, math.floor(q * n)) - 1]


def test_actions_are_drawn_by_inverse_cdf_without_unimix() -> None:
    agent = networks.agent()
    state_NF = torch.randn(40, F)
    u_N = networks.uniforms(40)
    cumulative_NA = agent.actor(state_NF).double().softmax(-1).cumsum(-1)
    want = [next((a for a in range(4) if row[a] > u), 4) for row, u in zip(cumulative_NA, u_N, strict=True)]
    assert agent.act(state_NF, u_N).tolist() == want


def test_the_ratios_gradient_is_the_policy_gradient_where_the_ratio_is_one() -> None:
    plain, ratio = networks.agent(), networks.agent(policy_loss="ratio")
    ratio.load_state_dict(plain.state_dict())
    t = trajectory()
    then_BT = of_actions(ratio.log_policy(t), t.action_BT).detach()
    found = []
    for agent, then in ((plain, None), (ratio, then_BT)):
        total, metrics = agent.loss(t, then)
        total.backward()
        found.append([p.grad for p in agent.parameters() if p.grad is not None])
    assert metrics["policy"] != plain.loss(t)[1]["policy"]
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_the_ratio_weighs_the_advantage_by_how_the_policy_has_changed() -> None:
    agent = networks.agent(policy_loss="ratio")
    t = trajectory()
    then_BT = torch.randn(8, 5, generator=torch.Generator().manual_seed(4)) - 2
    _, got = agent.loss(t, then_BT)
    other = networks.agent()
    other.load_state_dict(agent.state_dict())
    value_BS = twohot.decode(other.critic(t.state_BSF))
    return_BT = lambda_return(t.reward_BT, t.end_BT, value_BS, 0.985, 0.95, "current")
    advantage_BT = (return_BT - value_BS[:, :-1]) / got["return_scale"]
    now_BT = other.actor(t.state_BSF[:, :-1]).softmax(-1).gather(-1, t.action_BT[..., None])[..., 0]
    torch.testing.assert_close(got["policy"], -(now_BT / then_BT.exp() * advantage_BT).mean())


def test_a_silu_agent_is_torchs_own_layers() -> None:
    agent = networks.agent(agent_layers=3, agent_activation="silu")
    x_NF = torch.randn(6, F, generator=torch.Generator().manual_seed(0))
    h_ND, layers = x_NF, list(agent.actor)
    assert [type(layer).__name__ for layer in layers] == ["Linear", "LayerNorm", "SiLU"] * 3 + ["Linear"]
    for i in range(3):
        linear, norm = layers[3 * i : 3 * i + 2]
        h_ND = torch.nn.functional.linear(h_ND, linear.weight)
        h_ND = torch.nn.functional.layer_norm(h_ND, h_ND.shape[-1:], norm.weight, norm.bias)
        h_ND = h_ND * torch.sigmoid(h_ND)
    want_NA = torch.nn.functional.linear(h_ND, layers[-1].weight, layers[-1].bias)
    torch.testing.assert_close(agent.actor(x_NF), want_NA)


def test_the_updates_share_the_trajectories() -> None:
    t = trajectory(B=8)
    config = replace(networks.agent().config, agent_updates=4, policy_loss="ratio")
    agent = Agent(config, F, networks.ACTIONS, networks.SMALL.bins)
    seen: list[Trajectory] = []
    thens: list[torch.Tensor] = []
    before_BT = of_actions(agent.log_policy(t), t.action_BT).detach()
    loss = agent.loss

    def watched(share: Trajectory, then_BT: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen.append(share)
        thens.append(then_BT)
        return loss(share, then_BT)

    agent.loss = watched  # type: ignore[method-assign]
    metrics = list(update_agent(agent, Optimizer(agent, 1e-2, eps=1e-5, clip=100.0), t, choose("cpu", "fp32")))
    assert len(metrics) == 4
    for field in range(4):
        assert torch.equal(torch.cat([share[field] for share in seen]), t[field])
    # All ratios are to the policy that imagined, not to the one before the last update.
    assert torch.equal(torch.cat(thens), before_BT)
    after_BT = of_actions(agent.log_policy(t), t.action_BT)
    assert (after_BT - before_BT).abs().max() > 1e-3
