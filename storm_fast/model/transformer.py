"""The sequence model: (latent, action) tokens in, one hidden state a step out (STORM eq. 2, Tables 5 to 8).

It can be run in three ways that give the same numbers: `forward` over a whole sequence, `prefill`, which also fills a
cache, and `step`, one step at a time on that cache.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from storm_fast.config import ModelConfig
from storm_fast.kernels import attention
from storm_fast.model.mlp import Chain, linear_relu, normalise
from storm_fast.model.onehot import LatentActionLinear


class KVCache(NamedTuple):
    """Projected keys and values of every layer, [L, B, H, S, K] each; preallocated, written in place."""

    k: Tensor
    v: Tensor


class Block(nn.Module):
    """Post-norm attention and feed-forward, each with dropout and residual (STORM Table 7)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        # One product for q, k and v: same numbers and same initial range as three of the same fan-in.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)
        self.feedforward_norm = nn.LayerNorm(width, eps=1e-6)
        self.drop = nn.Dropout(dropout)

    def project(self, x_ND: Tensor) -> Tensor:
        """q, k and v as the attention kernels read them, [..., 3, H, K]."""
        D = x_ND.shape[-1]
        qkv_N3HK: Tensor = self.qkv(x_ND).unflatten(-1, (3, self.heads, D // self.heads))
        return qkv_N3HK

    def finish(self, x_ND: Tensor, attended_NHK: Tensor) -> Tensor:
        """All that follows attention."""
        x_ND = normalise(self.attention_norm, self.drop(self.out(attended_NHK.flatten(-2))), x_ND)
        hidden_ND = self.drop(self.contract(linear_relu(self.expand, x_ND)))
        return normalise(self.feedforward_norm, hidden_ND, x_ND)


class Transformer(nn.Module):
    """Action mixer, learned positions, causal blocks."""

    def __init__(self, config: ModelConfig, num_actions: int) -> None:
        super().__init__()
        D = config.width
        self.num_actions, self.max_positions = num_actions, config.max_positions
        self.mixer = Chain(
            LatentActionLinear(config.latents, config.classes, num_actions, D),
            nn.LayerNorm(D),
            nn.ReLU(),
            nn.Linear(D, D, bias=False),
            nn.LayerNorm(D),
        )
        self.position = nn.Embedding(config.max_positions, D)
        self.input_norm = nn.LayerNorm(D, eps=1e-6)
        self.blocks = nn.ModuleList(Block(D, config.heads, config.dropout) for _ in range(config.layers))
        self.heads, self.dropout = config.heads, config.dropout

    def _tokens(self, z_NZ: Tensor, action_N: Tensor, position_ND: Tensor) -> Tensor:
        """Mix latent and action, add the position, normalise (STORM Tables 5 and 6)."""
        first = cast("LatentActionLinear", self.mixer[0])
        mixed_ND = self.mixer.behind(first, first.mix(z_NZ, action_N))
        return normalise(self.input_norm, mixed_ND, position_ND)

    def forward(self, z_BTZ: Tensor, action_BT: Tensor) -> Tensor:
        """Hidden states of a whole sequence, each from the steps up to its own.

        Args:
            z_BTZ: one-hot latents, flattened.
            action_BT: any integer dtype, in [0, A).

        Returns:
            h_BTD.

        Raises:
            ValueError: when T exceeds the rows of the position table.
        """
        h_BTD = self._tokens(z_BTZ, action_BT, self._positions(z_BTZ.shape[1]))
        for block in self._blocks():
            attended_BTHK = attention.attend(block.project(h_BTD), self.dropout if self.training else 0.0)
            h_BTD = block.finish(h_BTD, attended_BTHK)
        return h_BTD

    def prefill(self, z_BTZ: Tensor, action_BT: Tensor, cache: KVCache) -> Tensor:
        """As `forward` in evaluation mode; fills the cache's first T places in place."""
        h_BTD = self._tokens(z_BTZ, action_BT, self._positions(z_BTZ.shape[1]))
        for block, k_BHSK, v_BHSK in zip(self._blocks(), cache.k, cache.v, strict=True):
            h_BTD = block.finish(h_BTD, attention.prefill(block.project(h_BTD), k_BHSK, v_BHSK))
        return h_BTD

    def step(self, z_BZ: Tensor, action_B: Tensor, cache: KVCache, position: int) -> Tensor:
        """The hidden state after one further step; writes place `position` of the cache in place."""
        h_BD = self._tokens(z_BZ, action_B, self.position.weight[position])
        for block, k_BHSK, v_BHSK in zip(self._blocks(), cache.k, cache.v, strict=True):
            h_BD = block.finish(h_BD, attention.step(block.project(h_BD), k_BHSK, v_BHSK, position))
        return h_BD

    def new_cache(self, B: int, S: int) -> KVCache:
        """An empty cache for B sequences of at most S steps, in the dtype of matrix products."""
        weight = self.position.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        shape = (len(self.blocks), B, self.heads, S, weight.shape[1] // self.heads)
        return KVCache(weight.new_empty(shape, dtype=dtype), weight.new_empty(shape, dtype=dtype))

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _positions(self, T: int) -> Tensor:
        if self.max_positions < T:
            raise ValueError(f"want at most {self.max_positions} steps, the rows of the position table; got {T}")
        return self.position.weight[:T]
