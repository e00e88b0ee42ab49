"""The three-layer perceptron behind every head of STORM (STORM Table 9), and the chain of layers it is made of."""

import torch
from torch import Tensor, nn

from storm_fast.kernels import norm
from storm_fast.kernels.activation import Activation
from storm_fast.model.margin import WideOut
from storm_fast.model.onehot import OneHotLinear


def normalise(layer: nn.LayerNorm, x_ND: Tensor, residual_ND: Tensor | None = None, relu: bool = False) -> Tensor:
    """The normalisation of x + residual, optionally followed by a ReLU, in one launch on a GPU."""
    return norm.layer_norm(x_ND, layer.weight, layer.bias, layer.eps, residual_ND, relu)


def linear_relu(layer: nn.Linear, x_ND: Tensor) -> Tensor:
    """The ReLU of a linear layer's output; where no gradient is wanted in one launch on a GPU."""
    if torch.is_grad_enabled() or x_ND.dtype != layer.weight.dtype:
        return torch.relu(layer(x_ND))
    y_MD = torch._addmm_activation(layer.bias, x_ND.flatten(0, -2), layer.weight.t())  # relu, which is its default
    y_ND: Tensor = y_MD.unflatten(0, x_ND.shape[:-1])
    return y_ND


class Chain(nn.Sequential):
    """Like nn.Sequential, but a normalisation and the ReLU behind it share one launch."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """The last layer's output."""
        return self.behind(None, x_ND)

    def behind(self, done: nn.Module | None, x_ND: Tensor) -> Tensor:
        """The last layer's output from that of layer `done`; from the input where it is None."""
        layers = list(self)
        layers = layers[layers.index(done) + 1 :] if done is not None else layers
        for before, layer, behind in zip([None, *layers[:-1]], layers, [*layers[1:], None], strict=True):
            if isinstance(layer, nn.LayerNorm):
                x_ND = normalise(layer, x_ND, relu=isinstance(behind, nn.ReLU))
            elif not (isinstance(layer, nn.ReLU) and isinstance(before, nn.LayerNorm)):
                x_ND = layer(x_ND)
        return x_ND


def mlp(
    inputs: int,
    width: int,
    outputs: int,
    latents: tuple[int, int] = (0, 0),
    hidden: int = 2,
    activation: Activation = "relu",
    wide_out: bool = False,
) -> Chain:
    """[Linear without bias, LayerNorm, activation] for each hidden layer, then Linear (STORM Table 9, "3 layers").

    Args:
        inputs: size of the input.
        width: of every hidden layer.
        outputs: size of the output.
        latents: the one-hot groups the input begins with: how many, and of how many classes.
        hidden: how many hidden layers.
        activation: behind each normalisation.
        wide_out: whether the output may have a margin behind it (margin.py), which whoever calls leaves out.
    """
    layers: list[nn.Module] = []
    for i in range(hidden):
        if i == 0 and latents[0]:
            layers.append(OneHotLinear(inputs, width, *latents))
        else:
            layers.append(nn.Linear(width if i else inputs, width, bias=False))
        layers += [nn.LayerNorm(width), nn.ReLU() if activation == "relu" else nn.SiLU()]
    return Chain(*layers, (WideOut if wide_out else nn.Linear)(width, outputs))
