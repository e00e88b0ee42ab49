"""The decoder: latents back to frames (STORM Table 4)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from storm_fast.kernels import deconv_error
from storm_fast.kernels.activation import Activation
from storm_fast.model.batch_norm import ActivatedBatchNorm
from storm_fast.model.encoder import GRID


class Decoder(nn.Module):
    """Linear and four doubling transposed convolutions (STORM Table 4): [N, Z] to frames [N, P, 64, 64], unbounded."""

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
        """What the last layer reads, [N, stem, 32, 32]; it follows in `image`, or fused with the error of its image."""
        x_NCYX = self.linear(z_NZ).unflatten(-1, (self.channels, GRID, GRID)).contiguous(memory_format=layout)
        x_NCYX = self.norms[0](x_NCYX)
        for deconv, norm in zip(self.deconvs, self.norms[1:], strict=True):
            x_NCYX = norm(deconv(x_NCYX))
        painted_NCYX: Tensor = x_NCYX
        return painted_NCYX

    def image(self, x_NCYX: Tensor) -> Tensor:
        """Frames image_NPYX on the scale where the observation is [0, 1]."""
        image_NPYX: Tensor = self.last(x_NCYX)
        return image_NPYX

    def squared_error(self, x_NCYX: Tensor, mean_YXP: Tensor | None, obs_NYXP: Tensor) -> Tensor:
        """Of these frames, with the mean added, to uint8 ones: the sum over each, float32 [N]."""
        assert self.last.bias is not None
        return deconv_error.squared_error(x_NCYX, self.last.weight, self.last.bias, mean_YXP, obs_NYXP)
