"""Acting in the real game: the newest steps through the world model, then the actor (STORM sec. 3.2)."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.config import LoopConfig
from storm_fast.model.agent import Agent
from storm_fast.model.imagine import agent_state
from storm_fast.model.world_model import WorldModel


class Policy:
    """The agent's view of N running games: their last C frames and actions, on the training device.

    The context is left-aligned in buffers of fixed shape, so every call computes the same shapes. The causal mask hides
    whatever lies beyond its length.
    """

    def __init__(self, world_model: WorldModel, agent: Agent, config: LoopConfig, N: int, device: torch.device) -> None:
        self.world_model, self.agent, self.config = world_model, agent, config
        C = config.acting_context
        self.obs_NCYXP = torch.zeros(N, C, *world_model.frame, dtype=torch.uint8, device=device)
        self.action_NC = torch.zeros(N, C, dtype=torch.int64, device=device)
        self.length_N = torch.zeros(N, dtype=torch.int64, device=device)

    @torch.no_grad()
    def act(self, obs_NYXP: Tensor, generator: torch.Generator) -> Tensor:
        """Draw action_N, int64; where the context is still empty, what `acting_first` names.

        With `acting_latent` "prior" the newest frame is ignored: z is predicted from the steps before, as in
        imagination. With "posterior" z is encoded from it.
        """
        model, G = self.world_model, self.world_model.config.latents
        N, C = self.action_NC.shape
        posterior = self.config.acting_latent == "posterior"
        u_NK = torch.rand(N, (C + 1) * G + 1, generator=generator, device=self.length_N.device)
        u_SG, u_action_N = u_NK[:, :-1].unflatten(1, (C + 1, G)), u_NK[:, -1]
        frames = torch.cat([self.obs_NCYXP, obs_NYXP[:, None]], dim=1) if posterior else self.obs_NCYXP
        z_NSZ = model.encode(frames, u_SG[:, : frames.shape[1]])
        h_NCD = model.transformer(z_NSZ[:, :C], self.action_NC)
        newest_N = (self.length_N - 1).clamp_min(0)
        h_ND = h_NCD[torch.arange(N, device=h_NCD.device), newest_N]
        z_NZ = z_NSZ[:, C] if posterior else model.predict(h_ND, u_SG[:, C])
        drawn_N = self.agent.act(agent_state(model, self.agent, z_NZ, h_ND), u_action_N)
        uniform_N = (u_action_N * model.transformer.num_actions).long()
        if self.config.acting_uniform > 0:
            u_2N = torch.rand(2, N, generator=generator, device=self.length_N.device)
            other_N = (u_2N[1] * model.transformer.num_actions).long()
            drawn_N = torch.where(u_2N[0] < self.config.acting_uniform, other_N, drawn_N)
        first_N = torch.zeros_like(uniform_N) if self.config.acting_first == "zero" else uniform_N
        return torch.where(self.length_N == 0, first_N, drawn_N)

    def remember(self, obs_NYXP: Tensor, action_N: Tensor) -> None:
        """Append the newest frames and actions to the context in place, dropping the oldest step when it is full."""
        N, C = self.action_NC.shape
        full_N = self.length_N == C
        for kept, new in ((self.obs_NCYXP, obs_NYXP), (self.action_NC, action_N)):
            aside = [1] * (kept.ndim - 1)
            shifted = torch.where(full_N.view(-1, *aside), kept.roll(-1, 1), kept)
            place_NC = torch.arange(C, device=kept.device) == self.length_N.clamp_max(C - 1)[:, None]
            kept.copy_(torch.where(place_NC.view(N, C, *aside[1:]), new[:, None], shifted))
        self.length_N.add_(1).clamp_max_(C)

    def end_episodes(self, ended_N: Tensor) -> None:
        """Empty the context of ended games where `acting_at_end` is "clear"."""
        if self.config.acting_at_end == "clear":
            self.length_N.masked_fill_(ended_N, 0)

    def state_dict(self) -> dict[str, Any]:
        """The contexts."""
        return {"obs": self.obs_NCYXP, "action": self.action_NC, "length": self.length_N}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.obs_NCYXP.copy_(state["obs"])
        self.action_NC.copy_(state["action"])
        self.length_N.copy_(state["length"])
