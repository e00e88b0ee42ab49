"""Adam behind a clipped gradient: one update of the world model or of the agent."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from storm_fast.engine.narrow import Narrow


class Optimizer:
    """Adam over a module's trainable parameters, their gradient clipped to a global norm before each step."""

    def __init__(self, module: nn.Module, lr: float, eps: float, clip: float, narrow: bool = False) -> None:
        """Args: learning rate, Adam's eps, the largest global L2 norm of the gradient, whether to keep bf16 copies."""
        self.narrow = Narrow(module) if narrow else None
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.clip = clip
        # On a GPU the step count lies there too, so that a step can be captured.
        self._on_gpu = self.parameters[0].is_cuda
        self.adam = torch.optim.Adam(self.parameters, lr=lr, eps=eps, fused=True, capturable=self._on_gpu)

    def standing(self) -> AbstractContextManager[None]:
        """A block in which the module's bf16 copies, where there are any, stand in the place of its weights."""
        return self.narrow.standing() if self.narrow is not None else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Replace the gradients by those of `loss`."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        if self.narrow is not None:
            self.narrow.widen_gradients()

    def step(self) -> Tensor:
        """Clip, update the parameters in place, and give the gradient's norm before clipping, 0-d."""
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # Clipped as nn.utils.clip_grad_norm_ does, but by Adam's own pass, which divides the gradients by this number.
        self.adam.grad_scale = ((norm + 1e-6) / self.clip).clamp_min(1.0)  # type: ignore[attr-defined]  # GradScaler's
        self.adam.step()
        return norm

    def refresh(self) -> None:
        """Bring the bf16 copies, where there are any, up to the parameters, by whomever these were changed."""
        if self.narrow is not None:
            self.narrow.refresh()

    def tensors(self) -> list[Tensor]:
        """Moments and step counts, as they lie in memory; none before the first step."""
        return [value for moments in self.adam.state.values() for value in moments.values()]

    def copies(self) -> list[Tensor]:
        """The bf16 copies; none in float32."""
        return self.narrow.tensors() if self.narrow is not None else []

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
        self.refresh()
