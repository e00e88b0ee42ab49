"""The agent: actor and critic, which learn from imagined trajectories alone (STORM sec. 3.2, eqs. 6 to 10)."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from storm_fast.config import AgentConfig
from storm_fast.kernels import categorical, twohot
from storm_fast.kernels.lambda_return import lambda_return, reach_weights
from storm_fast.model.losses import weighted_total
from storm_fast.model.mlp import mlp


class Trajectory(NamedTuple):
    """B imagined trajectories of T steps."""

    state_BSF: Tensor  # S = T + 1: the last state is only bootstrapped from
    action_BT: Tensor  # int64
    reward_BT: Tensor  # float32
    end_BT: Tensor  # float32: 0 or 1, or the probability of an end (config.imagined_end)


class Agent(nn.Module):
    """Actor, critic, the critic's slow copy, and the scale of its returns."""

    def __init__(
        self, config: AgentConfig, features: int, num_actions: int, bins: int, latents: tuple[int, int] = (0, 0)
    ) -> None:
        """Args: the configuration, sizes of state, policy and value, and the one-hot groups the state begins with."""
        super().__init__()
        self.config = config
        shape = config.agent_layers, config.agent_activation
        self.actor = mlp(features, config.agent_width, num_actions, latents, *shape)
        self.critic = mlp(features, config.agent_width, bins, latents, *shape, wide_out=True)
        self.bins = bins
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_low: Tensor  # moving averages of the percentiles of the return (eq. 9)
        self.return_high: Tensor
        self.register_buffer("return_low", torch.zeros(()))
        self.register_buffer("return_high", torch.zeros(()))
        if config.critic_warmup > 0:
            self.updates: Tensor  # losses computed so far; a buffer, so that a captured update counts too
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def act(self, state_NF: Tensor, u_N: Tensor) -> Tensor:
        """Draw action_N, int64, from the policy by inverse CDF with uniforms u."""
        return categorical.draw(self.actor(state_NF), u_N)

    def end(self, logit_N: Tensor) -> Tensor:
        """The end of an imagined step from its logit, in the form that `imagined_end` names, float32."""
        return (logit_N > 0).float() if self.config.imagined_end == "hard" else logit_N.sigmoid()

    def log_policy(self, trajectory: Trajectory) -> Tensor:
        """Log-probabilities of all actions at every step that was acted on, float32 [B, T, A]."""
        log_policy_BTA: Tensor = self.actor(trajectory.state_BSF[:, :-1]).float().log_softmax(-1)
        return log_policy_BTA

    def loss(self, trajectory: Trajectory, then_BT: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint loss of actor and critic (STORM eqs. 7a and 7b) and its parts, 0-d float32.

        Updates the moving percentiles of the return before using them, and counts updates towards `critic_warmup`.

        Args:
            trajectory: what was imagined.
            then_BT: the log-probabilities of its actions under the policy that imagined, for the `ratio` policy loss.
        """
        c = self.config
        value_logits_BSV = self.critic(trajectory.state_BSF)
        with torch.no_grad():
            value_BS = twohot.decode(value_logits_BSV, self.bins)
            slow_BS = twohot.decode(self.slow_critic(trajectory.state_BSF), self.bins)
            return_BT = self._return(trajectory, value_BS)
            weight_BT = self._weights(trajectory.end_BT)
            slow_target_BT = (
                self._return(trajectory, slow_BS) if c.critic_target == "lambda_return" else slow_BS[:, :-1]
            )
            spread = self._spread(return_BT)
            scale = spread.clamp_min(1.0)
            advantage_BT = (return_BT - value_BS[:, :-1]) / scale

        log_policy_BTA = self.log_policy(trajectory)
        log_prob_BT = of_actions(log_policy_BTA, trajectory.action_BT)
        weighed_BT = log_prob_BT
        if c.policy_loss == "ratio":
            assert then_BT is not None
            weighed_BT = (log_prob_BT - then_BT).exp()
        entropy_BT = -(log_policy_BTA.exp() * log_policy_BTA).sum(-1)
        losses = {
            "policy": -(weight_BT * advantage_BT * weighed_BT).mean(),
            "entropy": (weight_BT * entropy_BT).mean(),
            "value": (weight_BT * self._critic_error(value_logits_BSV[:, :-1], return_BT)).mean(),
            "slow_value": (weight_BT * self._critic_error(value_logits_BSV[:, :-1], slow_target_BT)).mean(),
        }
        weights = {"policy": 1.0, "entropy": -c.entropy, "value": 1.0, "slow_value": c.slow_weight}
        learned = losses
        if c.critic_warmup > 0:
            # This makes the actor's gradient exactly 0, and so Adam's step.
            is_warm = self.updates >= c.critic_warmup
            learned = losses | {name: losses[name] * is_warm for name in ("policy", "entropy")}
            self.updates += 1
        total = weighted_total(learned, weights)
        metrics = losses | {
            "return_spread": spread,
            "return_scale": scale,
            "return_mean": return_BT.mean(),
            "reward_mean": trajectory.reward_BT.mean(),
            "end_rate": trajectory.end_BT.mean(),
            "total": total,
        }
        return total, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Move the slow critic towards the critic; call after each optimiser step (STORM eq. 10)."""
        slow, fast = (tuple(critic.parameters()) for critic in (self.slow_critic, self.critic))
        torch._foreach_lerp_(slow, fast, 1 - self.config.slow_decay)  # one launch, as in torch's own optimisers

    def _return(self, trajectory: Trajectory, value_BS: Tensor) -> Tensor:
        c = self.config
        return lambda_return(trajectory.reward_BT, trajectory.end_BT, value_BS, c.gamma, c.lam, c.bootstrap)

    def _weights(self, end_BT: Tensor) -> Tensor:
        if self.config.imagined_end == "hard":
            return torch.ones_like(end_BT)
        return reach_weights(end_BT, self.config.gamma)

    def _critic_error(self, logits_BTV: Tensor, target_BT: Tensor) -> Tensor:
        if self.config.critic_loss == "two_hot":
            return twohot.loss(logits_BTV, target_BT, self.bins)
        return (twohot.decode(logits_BTV, self.bins) - target_BT).square()

    def _spread(self, return_BT: Tensor) -> Tensor:
        """S of STORM eq. 9: the range between the 5th and the 95th percentile of the return."""
        low, high = percentiles(return_BT, 0.05, 0.95)
        if self.config.return_scale == "batch":
            return high - low
        self.return_low.lerp_(low, 1 - self.config.return_decay)
        self.return_high.lerp_(high, 1 - self.config.return_decay)
        return self.return_high - self.return_low


def of_actions(log_policy_BTA: Tensor, action_BT: Tensor) -> Tensor:
    """The log-probabilities of the actions taken, [B, T]."""
    return log_policy_BTA.gather(-1, action_BT[..., None]).squeeze(-1)


def percentiles(x: Tensor, *qs: float) -> list[Tensor]:
    """The int(q n)-th smallest of x's n values for each q, counted from 1, at least the first; no interpolation."""
    # One sort of 16,384 values takes an H100 0.054 ms, two searches for the k-th 0.107 (torch 2.11, float32).
    sorted_N = x.flatten().sort().values
    return [sorted_N[max(1, int(q * x.numel())) - 1] for q in qs]
