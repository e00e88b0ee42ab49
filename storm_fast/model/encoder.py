"""The encoder: frames to embeddings (STORM Table 3)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from storm_fast.kernels.conv_relu import conv_relu

GRID = 4  # rows and columns that four halvings leave of 64


class Encoder(nn.Module):
    """Four halving convolutions, batch-normalised (STORM Table 3): [N, P, 64, 64] -> [N, 16 * 8 * stem]."""

    def __init__(self, colours: int, stem: int) -> None:
        super().__init__()
        sizes = [colours, stem, 2 * stem, 4 * stem, 8 * stem]
        pairs = list(pairwise(sizes))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 4, stride=2, padding=1, bias=False) for i, o in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)

    def forward(self, image_NPYX: Tensor) -> Tensor:
        """Embeddings flattened as channels, rows, columns; the definition, in training and evaluation."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            image_NPYX = torch.relu(norm(conv(image_NPYX)))
        return image_NPYX.flatten(1)

    def folded(self, image_NPYX: Tensor) -> Tensor:
        """As `forward` in evaluation mode, with each normalisation folded into its convolution's weights."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(conv.padding, tuple)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale_P = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = conv.weight * scale_P[:, None, None, None]
            shift_P = norm.bias - norm.running_mean * scale_P
            image_NPYX = conv_relu(image_NPYX, weight, shift_P, conv.stride, conv.padding)
        return image_NPYX.flatten(1)
