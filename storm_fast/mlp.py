"""The three-layer perceptron that every head of STORM is (STORM Table 9)."""

from torch import nn


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """[Linear without bias, LayerNorm, ReLU] twice, then Linear (STORM Table 9, "3 layers")."""
    return nn.Sequential(
        nn.Linear(inputs, width, bias=False),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )
