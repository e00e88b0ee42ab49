"""Which implementation the public functions of every op run: the PyTorch references or the Triton kernels."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]
Ops = Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]

# Triton's default changes from fused to unfused multiply-adds with 3.10, and 3.9 warns until one is chosen. Ours is
# fused with every version: faster, and rounded once.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# One choice for the process, like torch.set_num_threads: models carry no trace of it, and a compiled or captured
# step is compiled or captured after it is made.
_chosen: Backend = "auto"


def use(backend: Backend) -> None:
    """Choose for this process: `auto` is Triton for tensors on a GPU and the references for all others.

    `triton` also sends CPU tensors to the kernels, which run there in Triton's interpreter alone: for tests.
    """
    global _chosen
    _chosen = backend


def chosen() -> Backend:
    """What `use` was last told; `auto` before."""
    return _chosen


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """`use` for the length of a block."""
    before = _chosen
    use(backend)
    try:
        yield
    finally:
        use(before)


def is_triton(x: Tensor) -> bool:
    """Whether a call on this tensor runs the kernels."""
    return _chosen == "triton" or (_chosen == "auto" and x.is_cuda)


def _on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """The launch where its first argument lies: Triton would launch on the current device, whichever that is."""

    @wraps(launch)
    def guarded(x: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(x):
            return launch(x, *rest)

    return guarded


def register(ops: Ops) -> None:
    """Define torch ops `storm_fast::...` from their schemas, each with what runs it and what tells its shapes.

    What runs it launches a kernel, on any device, that of its first argument, a tensor: one of a CPU reaches it in
    Triton's interpreter alone.
    """
    for schema, (launch, fake) in ops.items():
        name = "storm_fast::" + schema[: schema.index("(")]
        torch.library.define(name, schema[schema.index("(") :])
        torch.library.impl(name, "cpu", launch)
        torch.library.impl(name, "cuda", _on_its_device(launch))
        torch.library.register_fake(name, fake)
