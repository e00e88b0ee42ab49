"""Adam behind a clipped gradient: one update of the world model or of the agent."""

from typing import Any

import torch
from torch import Tensor, nn


class Optimizer:
    """Adam over a module's trainable parameters, their gradient clipped to a global norm before each step."""

    def __init__(self, module: nn.Module, lr: float, eps: float, clip: float) -> None:
        """Args: learning rate, Adam's eps, and the largest global L2 norm of the gradient."""
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.clip = clip
        # On a GPU the step count lies there too, so that a step can be captured.
        self._on_gpu = self.parameters[0].is_cuda
        self.adam = torch.optim.Adam(self.parameters, lr=lr, eps=eps, fused=True, capturable=self._on_gpu)

    def backward(self, loss: Tensor) -> None:
        """Replace the gradients by those of `loss`."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()

    def step(self) -> Tensor:
        """Clip, update the parameters in place, and give the gradient's norm before clipping, 0-d."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        return norm

    def tensors(self) -> list[Tensor]:
        """Moments and step counts, as they lie in memory; none before the first step."""
        return [value for moments in self.adam.state.values() for value in moments.values()]

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, in the memory layout that the parameters have here."""
        self.adam.load_state_dict(state)
        for group in self.adam.param_groups:  # the state carries that of the device it was saved on
            group["capturable"] = self._on_gpu
        # The fused step walks raw memory: a moment whose strides differ from its parameter's would be paired with
        # other weights, without an error (saved in float32 on a CPU, resumed in channels_last).
        for parameter, moments in self.adam.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name])
