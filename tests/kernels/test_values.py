"""Every kernel against its reference, as its specification calls it: values and gradients, in Triton's interpreter at
small sizes, on a GPU at the model's too and replayed from a CUDA graph.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from storm_fast.kernels.backend import using
from storm_fast.kernels.spec import Draw, Spec, every, gradients, results
from tests.kernels.calls import NAMES, computed, copied
from tests.kernels.harness import DEVICE, assert_as_exact_as_eager, fenced, guarded

SPECS = every()
SMALL = [
    pytest.param(spec, sizes, dtype, id=f"small-{spec.name}-{size}-{NAMES[dtype]}")
    for spec in SPECS
    for size, sizes in spec.small.items()
    for dtype in spec.dtypes
]
FULL = [
    pytest.param(spec, use.sizes, dtype, id=f"full-{spec.name}-{name}-{NAMES[dtype]}", marks=pytest.mark.gpu)
    for spec in SPECS
    for name, use in spec.full.items()
    for dtype in spec.dtypes
    if dtype != torch.float16  # training computes in the others
]


def between_margins(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A copy whose dense tensors, images in channels_last too, lie between margins of NaN; others keep strides."""

    def fence(x: Any, plain: Any) -> Any:
        if not isinstance(x, Tensor):
            return plain
        if x.is_contiguous():
            return fenced(x.detach()).requires_grad_(x.requires_grad)
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return fenced(x.detach().permute(0, 2, 3, 1)).permute(0, 3, 1, 2).requires_grad_(x.requires_grad)
        return plain

    return tuple(map(fence, inputs, copied(inputs)))


@pytest.mark.parametrize(("spec", "sizes", "dtype"), [*SMALL, *FULL])
def test_values_and_gradients_equal_the_reference(spec: Spec, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    if spec.is_random:
        pytest.skip("draws by itself, and not as the reference does")
    for seed in range(2 if DEVICE == "cpu" else 1):
        inputs = spec.inputs(Draw(seed, DEVICE, dtype, learns=spec.learns), *sizes)
        with using("reference"):
            exact, _ = computed(spec, copied(inputs, is_exact=True), seed, dtype)
            eager, incoming = computed(spec, copied(inputs), seed, dtype)
        with using("triton"):
            got, _ = computed(spec, copied(inputs), seed, dtype)
        floors = spec.floors(*copied(inputs), *incoming)
        floors += (0.0,) * (len(got) - len(floors))
        for mine, want, narrow, floor in zip(got, exact, eager, floors, strict=True):
            assert mine.dtype == narrow.dtype
            assert mine.shape == narrow.shape
            if mine.is_floating_point():
                assert_as_exact_as_eager(mine, want.double(), narrow, floor)
            else:
                assert torch.equal(mine, narrow)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(("spec", "sizes", "dtype"), SMALL)
def test_nothing_outside_of_inputs_is_read_and_of_outputs_written(
    spec: Spec, sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = spec.inputs(Draw(0, DEVICE, dtype, learns=spec.learns), *sizes)
    plain, _ = computed(spec, copied(inputs), 0)
    with guarded():
        fenced_in, _ = computed(spec, between_margins(inputs), 0)
    if spec.is_random and spec.learns:  # the draw before was another; a NaN from outside would show nevertheless
        assert all(x.isfinite().all() for x in fenced_in)
    else:
        assert all(torch.equal(x, y) for x, y in zip(plain, fenced_in, strict=True))


@pytest.mark.gpu
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("spec", "use"),
    [pytest.param(spec, use, id=f"{spec.name}-{name}") for spec in SPECS for name, use in spec.full.items()],
)
def test_a_captured_call_replays_on_new_inputs_as_eager_computes_them(spec: Spec, use: Any) -> None:
    def inputs(seed: int) -> tuple[Any, ...]:
        drawn: tuple[Any, ...] = spec.inputs(Draw(seed, DEVICE, spec.measured_dtype, learns=use.learns), *use.sizes)
        return drawn

    def call(given: tuple[Any, ...], incoming: tuple[Tensor, ...]) -> list[Tensor]:
        out = spec.call(*given)
        return [*results(out), *gradients(out, given, incoming)]

    def refill(seed: int) -> None:
        with torch.no_grad():
            for buffer, new in zip(static, inputs(seed), strict=True):
                if isinstance(buffer, Tensor):
                    buffer.copy_(new)

    static = inputs(0)
    incoming = tuple(computed(spec, copied(static), 0)[1])  # compiles before the capture, too
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call(static, incoming)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(static, incoming)
    for seed in (1, 2):
        refill(seed)
        graph.replay()
        got = [x.detach().clone() for x in captured]
        if spec.is_random:
            graph.replay()
            # The result and its gradient, each under a mask of its own replay.
            assert not any(torch.equal(before, after) for before, after in zip(got, captured, strict=True))
        else:
            refill(seed)  # what is written in place was, by the replay
            want = call(static, incoming)
            assert all(torch.equal(mine, one) for mine, one in zip(got, want, strict=True))
