"""The encoder: frames to embeddings (STORM Table 3)."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from storm_fast.kernels.activation import Activation
from storm_fast.kernels.conv_relu import conv_relu
from storm_fast.kernels.first_conv import first_conv
from storm_fast.model.batch_norm import ActivatedBatchNorm

Folded = list[tuple[Tensor, Tensor]]
"""weight_OPYX and bias_O of each convolution"""

GRID = 4  # rows and columns that four halvings leave of 64


class Encoder(nn.Module):
    """Four halving convolutions, batch-normalised (STORM Table 3): uint8 [N, 64, 64, P] -> [N, 16 * 8 * stem]."""

    def __init__(self, colours: int, stem: int, activation: Activation) -> None:
        super().__init__()
        sizes = [colours, stem, 2 * stem, 4 * stem, 8 * stem]
        pairs = list(pairwise(sizes))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 4, stride=2, padding=1, bias=False) for i, o in pairs)
        self.norms = nn.ModuleList(ActivatedBatchNorm(o, activation) for _, o in pairs)
        self.activation = activation
        self.kept: Folded | None = None  # what `folded` reads where somebody keeps it as it is (engine/narrow.py)

    def forward(
        self,
        frames_MYXP: Tensor,
        index_N: Tensor | None = None,
        mean_YXP: Tensor | None = None,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """Embeddings flattened as channels, rows, columns; the definition, in training and evaluation.

        Args:
            frames_MYXP: uint8 frames.
            index_N: which of them; None takes all in order.
            mean_YXP: subtracted from the frames on the scale where they are [0, 1].
            layout: memory format of images and activations.
        """
        first, *others = cast("list[nn.Conv2d]", list(self.convs))
        dtype = _products_dtype(frames_MYXP)
        x_NPYX = first_conv(frames_MYXP, index_N, mean_YXP, first.weight, None, dtype, layout, activation=None)
        x_NPYX = self.norms[0](x_NPYX)
        for conv, norm in zip(others, self.norms[1:], strict=True):
            x_NPYX = norm(conv(x_NPYX))
        embedding_NE: Tensor = x_NPYX.flatten(1)
        return embedding_NE

    def folded(
        self,
        frames_MYXP: Tensor,
        index_N: Tensor | None = None,
        mean_YXP: Tensor | None = None,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """As `forward` in evaluation mode, with each normalisation folded into its convolution's weights."""
        first, *others = self.kept or self.fold(torch.float32)
        dtype, activation = _products_dtype(frames_MYXP), self.activation
        x_NPYX = first_conv(frames_MYXP, index_N, mean_YXP, *first, dtype, layout, activation)
        for weight_OPYX, bias_O in others:
            x_NPYX = conv_relu(x_NPYX, weight_OPYX, bias_O, (2, 2), (1, 1), activation)
        return x_NPYX.flatten(1)

    @torch.no_grad()
    def fold(self, dtype: torch.dtype, into: Folded | None = None) -> Folded:
        """Filters of `dtype` and float32 biases: convolutions that do what each with its norm does in evaluation mode.

        Computed in float32, the filters rounded once; in new memory or in that of an earlier call.
        """
        convs, norms = cast("list[nn.Conv2d]", list(self.convs)), cast("list[nn.BatchNorm2d]", list(self.norms))
        into = into or [
            (torch.empty_like(conv.weight, dtype=dtype), torch.empty_like(norm.bias))
            for conv, norm in zip(convs, norms, strict=True)
        ]
        # Lists, since the launches of so small tensors are what counts.
        scales = torch._foreach_add([cast("Tensor", norm.running_var) for norm in norms], norms[0].eps)
        torch._foreach_rsqrt_(scales)
        torch._foreach_mul_(scales, [norm.weight for norm in norms])
        shifts = torch._foreach_mul([cast("Tensor", norm.running_mean) for norm in norms], scales)
        torch._foreach_copy_([bias_O for _, bias_O in into], torch._foreach_sub([norm.bias for norm in norms], shifts))
        for conv, scale_O, (weight_OPYX, _) in zip(convs, scales, into, strict=True):
            torch.mul(conv.weight, scale_O[:, None, None, None], out=weight_OPYX)
        return into


def _products_dtype(frames_MYXP: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on: images are rounded to it once, not to float32 first."""
    device = frames_MYXP.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
