"""The decoder: latents back to frames (STORM Table 4)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from storm_fast.kernels.activation import Activation
from storm_fast.model.batch_norm import ActivatedBatchNorm
from storm_fast.model.encoder import GRID


class Decoder(nn.Module):
    """Linear and four doubling transposed convolutions (STORM Table 4): [N, Z] -> [N, P, 64, 64], unbounded."""

    def __init__(self, Z: int, colours: int, stem: int, activation: Activation) -> None:
        super().__init__()
        sizes = [8 * stem, 4 * stem, 2 * stem, stem]
        self.channels = sizes[0]
        self.linear = nn.Linear(Z, self.channels * GRID * GRID, bias=False)
        self.norms = nn.ModuleList(ActivatedBatchNorm(size, activation) for size in sizes)
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False) for i, o in pairwise(sizes)
        )
        self.last = nn.ConvTranspose2d(stem, colours, 4, stride=2, padding=1)

    def forward(self, z_NZ: Tensor, layout: torch.memory_format) -> Tensor:
        """Frames on the scale where the observation is [0, 1]."""
        x_NPYX = self.linear(z_NZ).unflatten(-1, (self.channels, GRID, GRID)).contiguous(memory_format=layout)
        x_NPYX = self.norms[0](x_NPYX)
        for deconv, norm in zip(self.deconvs, self.norms[1:], strict=True):
            x_NPYX = norm(deconv(x_NPYX))
        image_NPYX: Tensor = self.last(x_NPYX)
        return image_NPYX
