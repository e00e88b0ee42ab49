"""Small networks and batches that several test files share."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from storm_fast.config import AgentConfig, ModelConfig
from storm_fast.data.replay import Batch
from storm_fast.model.agent import Agent
from storm_fast.model.world_model import WorldModel

ACTIONS, FRAME = 5, (64, 64, 3)
SMALL = ModelConfig(
    stem_channels=2, latents=4, classes=6, width=16, heads=2, layers=2, bins=21, batch=3, length=7, dropout=0.0
)


def world_model(seed: int = 0, **changes: Any) -> WorldModel:
    """A small world model with running statistics that are not the initial ones."""
    torch.manual_seed(seed)
    model = WorldModel(replace(SMALL, **changes), ACTIONS, FRAME)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def agent(seed: int = 0, features: int | None = None, **changes: Any) -> Agent:
    """A small agent whose slow critic differs from its critic."""
    torch.manual_seed(seed)
    size = features or SMALL.latents * SMALL.classes + SMALL.width
    small = Agent(AgentConfig(agent_width=12, **changes), size, ACTIONS, SMALL.bins)
    with torch.no_grad():
        for parameter in small.slow_critic.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return small


def batch(B: int = 3, T: int = 7, seed: int = 0) -> Batch:
    """Random frames, actions, rewards and ends."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(256, (B, T, *FRAME), generator=g, dtype=torch.uint8),
        torch.randint(ACTIONS, (B, T), generator=g),
        torch.randn(B, T, generator=g),
        torch.rand(B, T, generator=g) < 0.2,
    )


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    """Uniform draws in [0, 1)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
