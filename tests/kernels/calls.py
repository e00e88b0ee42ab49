"""A call that a specification describes, with its gradients."""

from typing import Any

import torch
from torch import Tensor

from storm_fast.kernels.spec import Draw, Spec, differentiable, gradients, results

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def copied(inputs: tuple[Any, ...], is_exact: bool = False) -> tuple[Any, ...]:
    """Inputs of the same values, each leaf with a gradient of its own; `is_exact`, widened to float32."""

    def copy(x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return torch.float32 if is_exact else x
        if not isinstance(x, Tensor):
            return x
        wide = x.detach().float() if is_exact and x.is_floating_point() else x.detach()
        return wide.clone().requires_grad_(x.requires_grad)

    return tuple(map(copy, inputs))


def computed(
    spec: Spec, inputs: tuple[Any, ...], seed: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Results and gradients, and the gradients that came in: values of `dtype`, the same for any inputs."""
    out = spec.call(*inputs)
    draw = Draw(seed + 1000, results(out)[0].device, torch.float32)  # not the stream that the inputs came from
    incoming = [draw.normal(*x.shape, dtype=dtype).to(x.dtype) for x in differentiable(out)]
    return [x.detach() for x in results(out)] + gradients(out, inputs, tuple(incoming)), incoming
