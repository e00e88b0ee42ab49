"""The weights of products in bf16, rounded once after each update and not at each use.

Autocast rounds a weight wherever a product reads it and turns its gradient back into float32, each with a launch of its
own: 38 weights there and back in an update of the world model. Here the bf16 copies stand in the modules while a phase
runs. They are leaves: gradients arrive in bf16, as they leave the products, and all are widened together.

A copy may be larger than its parameter: a product whose rows are not a multiple of 16 bytes takes slow kernels (on an
H100 [16384, 512] x [512, 255] takes 0.053 ms, to 256 columns 0.011). The margin is zero and stays so, since nobody
reads what it makes. Parameters, checkpoints and optimiser know nothing of it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from storm_fast.engine.precision import Precision
from storm_fast.model.encoder import Encoder
from storm_fast.model.margin import shape_with_margin

_PRODUCTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class _Pair(NamedTuple):
    owner: nn.Module
    name: str
    wide: nn.Parameter
    narrow: Tensor  # what stands in the module; the parameter's strides, or rows with a margin

    def inner(self, x: Tensor) -> Tensor:
        """Without the margin, of the copy or of its gradient."""
        return x if x.shape == self.wide.shape else x[tuple(map(slice, self.wide.shape))]


class Narrow:
    """The bf16 copies of one module's weights, and the encoder's convolutions with the norms folded into them."""

    def __init__(self, module: nn.Module) -> None:
        self._pairs = list(_pairs(module))
        self._encoders = [part for part in module.modules() if isinstance(part, Encoder)]
        self._folded = [encoder.fold(torch.bfloat16) for encoder in self._encoders]
        self.refresh()

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The copies stand in the module while the block runs."""
        self._place(True)
        try:
            yield
        finally:
            self._place(False)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the parameters as they are now, and fold them.

        Raises:
            RuntimeError: while the copies stand: whatever was changed then was changed in them and would be lost.
        """
        if any(pair.owner._parameters[pair.name] is pair.narrow for pair in self._pairs):
            raise RuntimeError("want parameters to round; got their copies, which stand in the module")
        _copy([pair.inner(pair.narrow) for pair in self._pairs], [pair.wide for pair in self._pairs])
        for encoder, folded in zip(self._encoders, self._folded, strict=True):
            encoder.fold(torch.bfloat16, folded)

    def widen_gradients(self) -> None:
        """Move the gradients of the copies to the parameters, in float32."""
        to, of = [], []
        for pair in self._pairs:
            if pair.narrow.grad is not None:
                if pair.wide.grad is None:
                    pair.wide.grad = torch.empty_like(pair.wide)
                to.append(pair.wide.grad)
                of.append(pair.inner(pair.narrow.grad))
                pair.narrow.grad = None
        _copy(to, of)

    def tensors(self) -> list[Tensor]:
        """All that `refresh` writes."""
        folded = [tensor for layers in self._folded for layer in layers for tensor in layer]
        return [pair.narrow for pair in self._pairs] + folded

    def _place(self, stands: bool) -> None:
        for owner, name, wide, narrow in self._pairs:
            owner._parameters[name] = narrow if stands else wide  # type: ignore[assignment]  # a leaf, as the other is
        for encoder, folded in zip(self._encoders, self._folded, strict=True):
            encoder.kept = folded if stands else None


@contextmanager
def narrowed(precision: Precision, *modules: nn.Module) -> Iterator[None]:
    """A block in which copies of the weights as they are now stand in modules that do not learn; none in float32."""
    with ExitStack() as stack:
        if precision.dtype == torch.bfloat16:
            for module in modules:
                stack.enter_context(Narrow(module).standing())
        yield


def _pairs(module: nn.Module) -> Iterator[_Pair]:
    for owner in module.modules():
        if isinstance(owner, _PRODUCTS):
            for name, wide in owner.named_parameters(recurse=False):
                narrow = torch.zeros_like(wide, dtype=torch.bfloat16, requires_grad=False)
                shape = shape_with_margin(owner, wide)
                if shape != wide.shape:
                    narrow = narrow.new_zeros(shape)
                yield _Pair(owner, name, wide, narrow.requires_grad_(wide.requires_grad))


def _copy(to: list[Tensor], of: list[Tensor]) -> None:
    """All of them, in few launches; rows with a margin behind them one by one, since they are not dense."""
    pairs = list(zip(to, of, strict=True))
    dense = [pair for pair in pairs if pair[0].stride() == pair[1].stride()]
    if dense:
        torch._foreach_copy_([a for a, _ in dense], [b for _, b in dense])
    for a, b in pairs:
        if a.stride() != b.stride():
            a.copy_(b)
