"""Imagination: the agent acts inside the world model (STORM sec. 3.2). No gradient flows here."""

from typing import NamedTuple

import torch
from torch import Tensor

from storm_fast.model.agent import Agent, Trajectory
from storm_fast.model.past import Cached
from storm_fast.model.world_model import WorldModel


class Context(NamedTuple):
    """The real steps an imagined trajectory starts from."""

    z_BCZ: Tensor  # sampled posterior latents
    action_BC: Tensor


class Uniforms(NamedTuple):
    """Every uniform draw of one rollout, float32 in [0, 1); time is the first axis, so a step's draws are dense."""

    start_BG: Tensor
    action_TB: Tensor
    prior_TBG: Tensor


def draw_uniforms(B: int, T: int, G: int, generator: torch.Generator, device: torch.device) -> Uniforms:
    """All draws of a rollout of T steps in one call of the generator."""
    u_BN = torch.rand(B, G + T + T * G, generator=generator, device=device)
    start_BG, action_BT, prior_BN = u_BN.split([G, T, T * G], dim=1)
    # Three copies here save one per draw and step, which kernels would make of strided views.
    prior_TBG = prior_BN.unflatten(1, (T, G)).transpose(0, 1).contiguous()
    return Uniforms(start_BG.contiguous(), action_BT.T.contiguous(), prior_TBG)


def agent_state(world_model: WorldModel, agent: Agent, z_NZ: Tensor, h_ND: Tensor) -> Tensor:
    """The agent's input, state_NF: [z, h] (STORM eq. 6), or what an ablation replaces it with (fig. 4)."""
    match agent.config.agent_state:
        case "latent+hidden":
            return torch.cat([z_NZ, h_ND.to(z_NZ.dtype)], dim=-1)
        case "latent":
            return z_NZ
        case "hidden":
            return h_ND
        case "reconstruction":
            return world_model.decode(z_NZ).flatten(1)


@torch.no_grad()
def rollout(world_model: WorldModel, agent: Agent, context: Context, u: Uniforms) -> Trajectory:
    """Imagine T steps from each context.

    The context is read in one causal pass that fills the cache of keys and values; each imagined step then adds
    one place to it. Both modules must be in evaluation mode: running statistics, no dropout.

    Args:
        world_model: predicts latent, reward and end.
        agent: chooses the actions.
        context: where to start.
        u: the draws; their shape gives T.

    Returns:
        Trajectory of T + 1 states and T actions, rewards and ends.
    """
    (B, C), T = context.action_BC.shape, u.action_TB.shape[0]
    past = Cached(world_model.transformer, B, C + T)
    h_BD = past.read(context.z_BCZ, context.action_BC)[:, -1]
    z_BZ = world_model.predict(h_BD, u.start_BG)
    states, actions, features = [agent_state(world_model, agent, z_BZ, h_BD)], [], []
    for t in range(T):
        actions.append(agent.act(states[-1], u.action_TB[t]))
        h_BD = past.step(z_BZ, actions[-1])
        features.append(world_model.features(z_BZ, h_BD))
        z_BZ = world_model.predict(h_BD, u.prior_TBG[t])
        states.append(agent_state(world_model, agent, z_BZ, h_BD))
    return Trajectory(torch.stack(states, 1), torch.stack(actions, 1), *outcomes(world_model, agent, features))


def outcomes(world_model: WorldModel, agent: Agent, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Expected reward_BT and end_BT of imagined steps from the features_BF of each, float32.

    Nothing imagined depends on them, so each head runs once over all steps.
    """
    features_BTF = torch.stack(features, 1)
    return world_model.reward(features_BTF), agent.end(world_model.end_logit(features_BTF))


def outcomes_by_steps(world_model: WorldModel, agent: Agent, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """As `outcomes`, but running both heads at every step; the definition."""
    rewards = [world_model.reward(features_BF) for features_BF in features]
    ends = [agent.end(world_model.end_logit(features_BF)) for features_BF in features]
    return torch.stack(rewards, 1), torch.stack(ends, 1)
