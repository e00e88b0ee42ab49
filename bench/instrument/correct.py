"""Whether what a form computes is what the definition does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.instrument import timer


def results(call: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Tensor]:
    """What a call computes from its own copy of the inputs; on a GPU, as it is timed: by the replay of a graph."""
    own = tuple(_copy(x) for x in inputs)
    if timer.IS_GPU:
        # No call before: what it left behind would belong to another stream than the graph's, which cannot wait for it.
        graph, (out,) = timer.captured(call, [own])
        with torch.no_grad():
            for mine, x in zip(own, inputs, strict=True):
                if isinstance(x, Tensor):  # which the warm-up may have written in place
                    mine.copy_(x)
        graph.replay()
        timer.wait()
    else:
        out = call(*own)
    return [x.detach().clone() for x in ([out] if isinstance(out, Tensor) else out)]


def _copy(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def difference(truth: list[Tensor], result: list[Tensor], tolerance: float, row_tolerance: float) -> str | None:
    """What is wrong with a result, in whole or in a row of its first axis; None where nothing is. A NaN is wrong."""
    if [x.shape for x in truth] != [x.shape for x in result]:
        return f"shapes {[tuple(x.shape) for x in result]}, not {[tuple(x.shape) for x in truth]}"
    for i, (want, got) in enumerate(zip(truth, result, strict=True)):
        exact, off = want.double(), got.double() - want.double()
        error = float(off.norm() / exact.norm().clamp_min(1e-30))
        if not error <= tolerance:
            return f"result {i} is off by {error:.2g} of its norm; {tolerance:.2g} is allowed"
        if want.ndim > 1 and want.numel():
            typical = exact.norm() / len(exact) ** 0.5
            worst = float(off.flatten(1).norm(dim=1).max() / typical.clamp_min(1e-30))
            if not worst <= row_tolerance:
                return f"a row of result {i} is off by {worst:.2g} of a row's norm; {row_tolerance:.2g} is allowed"
    return None
