"""The three-layer perceptron behind every head of STORM (STORM Table 9), and the chain of layers it is made of."""

from torch import Tensor, nn

from storm_fast.kernels import norm
from storm_fast.model.onehot import OneHotLinear


def normalise(layer: nn.LayerNorm, x_ND: Tensor, residual_ND: Tensor | None = None, relu: bool = False) -> Tensor:
    """The normalisation of x + residual, optionally followed by a ReLU, in one launch on a GPU."""
    return norm.layer_norm(x_ND, layer.weight, layer.bias, layer.eps, residual_ND, relu)


class Chain(nn.Sequential):
    """Like nn.Sequential, but a normalisation and the ReLU behind it share one launch."""

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
        latents: the one-hot groups the input begins with: how many, and of how many classes.
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
