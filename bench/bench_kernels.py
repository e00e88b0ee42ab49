"""Every operation of kernels/, as its specification calls it, beside torch.compile, the definition and its peers."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from torch import Tensor

from bench.conftest import Compare
from bench.instrument.forms import DEVICE, OPERATION
from bench.instrument.harness import Subject, operation_forms
from storm_fast.kernels import backend
from storm_fast.kernels.spec import Draw, Spec, Use, differentiable, every, gradients, named, results

CASES = [
    pytest.param(spec, use, form, id=f"{spec.name}-{name}-{form}")
    for spec in every()
    for name, use in spec.full.items()
    for form in (*OPERATION, *spec.peers, *spec.absent)
]


@pytest.mark.parametrize(("spec", "use", "form"), CASES)
def bench_kernel(compare: Compare, spec: Spec, use: Use, form: str) -> None:
    compare(use.title, form, lambda: subject(spec, use))


def subject(spec: Spec, use: Use) -> Subject:
    """The specification's call in all its forms; where gradients are taken, on what comes in for them too."""
    seeds = count()
    # On inputs of its own: those that are captured must not have been in a graph of autograd before.
    probe = spec.inputs(Draw(next(seeds), DEVICE, spec.measured_dtype, use.learns), *use.sizes)
    with backend.using("reference"):
        learned = differentiable(spec.call(*probe)) if use.learns else []
    given, incoming = len(probe), [(x.shape, x.dtype) for x in learned]

    def inputs() -> tuple[Any, ...]:
        draw = Draw(next(seeds), DEVICE, spec.measured_dtype, use.learns)
        drawn = spec.inputs(draw, *use.sizes)
        return *drawn, *(draw.normal(*shape, dtype=dtype) for shape, dtype in incoming)

    def forms(of: Spec) -> dict[str, Callable[..., Any]]:
        taken = _learned if use.learns else (lambda call, _: call)
        peers = {name: taken(peer, given) for name, peer in of.peers.items()}
        return operation_forms(taken(of.call, given), **peers)

    return Subject(
        inputs=inputs,
        forms=forms(spec),
        cost=use.cost,
        tolerance=spec.tolerance,
        compared=forms(named(spec.compared)) if spec.compared else None,
        absent=spec.absent,
    )


def _learned(call: Callable[..., Any], given: int) -> Callable[..., tuple[Tensor, ...]]:
    """Results and gradients of the first `given` inputs, from those that come after."""

    def both(*inputs: Any) -> tuple[Tensor, ...]:
        out = call(*inputs[:given])
        return *results(out), *gradients(out, inputs[:given], inputs[given:])

    return both
