"""How an imagined step sees the steps before it: through a cache of keys and values, or by reading them all again."""

from typing import Protocol

import torch
from torch import Tensor

from storm_fast.model.transformer import Transformer


class Past(Protocol):
    """A sequence that grows one step at a time, in evaluation mode and without gradients."""

    def __init__(self, transformer: Transformer, B: int, S: int) -> None:
        """Begin B empty sequences of at most S steps."""

    def read(self, z_BTZ: Tensor, action_BT: Tensor) -> Tensor:
        """Hidden states h_BTD of the first T steps."""

    def step(self, z_BZ: Tensor, action_B: Tensor) -> Tensor:
        """The hidden state h_BD after one further step."""


class Cached:
    """Keeps every step's keys and values: one causal pass reads the context, each further step adds one place."""

    def __init__(self, transformer: Transformer, B: int, S: int) -> None:
        self.transformer, self.cache, self.length = transformer, transformer.new_cache(B, S), 0

    def read(self, z_BTZ: Tensor, action_BT: Tensor) -> Tensor:
        """Hidden states h_BTD of the first T steps."""
        self.length = action_BT.shape[1]
        return self.transformer.prefill(z_BTZ, action_BT, self.cache)

    def step(self, z_BZ: Tensor, action_B: Tensor) -> Tensor:
        """The hidden state h_BD after one further step."""
        h_BD = self.transformer.step(z_BZ, action_B, self.cache, self.length)
        self.length += 1
        return h_BD


class Stepwise(Cached):
    """As `Cached`, but reads the first steps one at a time, as the released code does."""

    def read(self, z_BTZ: Tensor, action_BT: Tensor) -> Tensor:
        """Hidden states h_BTD of the first T steps."""
        return torch.stack([self.step(z_BTZ[:, t], action_BT[:, t]) for t in range(action_BT.shape[1])], 1)


class Reread:
    """The definition: each step's hidden state is the last of a pass over the whole sequence (STORM eq. 2)."""

    def __init__(self, transformer: Transformer, B: int, S: int) -> None:
        self.transformer = transformer
        self.z_BTZ: Tensor
        self.action_BT: Tensor

    def read(self, z_BTZ: Tensor, action_BT: Tensor) -> Tensor:
        """Hidden states h_BTD of the first T steps."""
        self.z_BTZ, self.action_BT = z_BTZ, action_BT
        h_BTD: Tensor = self.transformer(z_BTZ, action_BT)
        return h_BTD

    def step(self, z_BZ: Tensor, action_B: Tensor) -> Tensor:
        """The hidden state h_BD after one further step."""
        longer = torch.cat([self.z_BTZ, z_BZ[:, None]], 1), torch.cat([self.action_BT, action_B[:, None]], 1)
        return self.read(*longer)[:, -1]
