"""The three-layer perceptron that every head of STORM is (STORM Table 9), and layers joined as its are."""

from torch import Tensor, nn

from storm_fast.kernels import norm
from storm_fast.model.onehot import OneHotLinear


def normalise(layer: nn.LayerNorm, x_ND: Tensor, residual_ND: Tensor | None = None, relu: bool = False) -> Tensor:
    """What the layer makes of x + residual, with or without a ReLU behind it, in one launch of a GPU."""
    return norm.layer_norm(x_ND, layer.weight, layer.bias, layer.eps, residual_ND, relu)


class Chain(nn.Sequential):
    """Layers in a row, as nn.Sequential, whose normalisations take the ReLU behind them into their own launch."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """The last layer's output."""
        layers = list(self)
        for before, layer, behind in zip([None, *layers[:-1]], layers, [*layers[1:], None], strict=True):
            if isinstance(layer, nn.LayerNorm):
                x_ND = normalise(layer, x_ND, relu=isinstance(behind, nn.ReLU))
            elif not (isinstance(layer, nn.ReLU) and isinstance(before, nn.LayerNorm)):
                x_ND = layer(x_ND)
        return x_ND


def mlp(inputs: int, width: int, outputs: int, latents: tuple[int, int] = (0, 0)) -> Chain:
    """[Linear without bias, LayerNorm, ReLU] twice, then Linear (STORM Table 9, "3 layers").

    Args:
        inputs: size of the input.
        width: of both hidden layers.
        outputs: size of the output.
        latents: how many one-hot groups the input begins with, and of how many classes.
    """
    return Chain(
        OneHotLinear(inputs, width, *latents) if latents[0] else nn.Linear(inputs, width, bias=False),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )
