"""Batch normalisation with the activation behind it, as encoder and decoder use it (STORM Tables 3 and 4)."""

from torch import Tensor, nn

from storm_fast.kernels.activation import ACTIVATIONS, Activation
from storm_fast.kernels.batch_norm import batch_norm


class ActivatedBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d and an activation, [N, C, Y, X] -> [N, C, Y, X]; in training both are one operation."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__(channels)
        self.activation = activation

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """In training by the statistics of the batch, which move the running ones; else by the running ones."""
        if not self.training:
            return ACTIVATIONS[self.activation](super().forward(x_NCYX))
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var
        return batch_norm(x_NCYX, self.weight, self.bias, *running, self.momentum, self.eps, self.activation)
