"""Which implementation the public functions of every op run: the PyTorch references or the Triton kernels."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]
P = ParamSpec("P")
R = TypeVar("R")

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


def op(name: str, launcher: str, mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make the decorated function, which gives results of the right shapes, the torch op `storm_fast::name`.

    Its annotations are the op's schema, its body is what torch.compile traces; what runs is `launcher`, called with the
    same arguments, the first of which is a tensor. A tensor of a CPU reaches it in Triton's interpreter alone.

    Args:
        name: the op's.
        launcher: `<operation>.<function>` in kernels/<operation>/kernel.py, which is imported when the op first runs: a
            process that uses the references alone never loads Triton.
        mutates: parameters that are written in place.
    """
    folder, function = launcher.split(".")

    def launch(*arguments: Any) -> Any:
        kernel = importlib.import_module(f"storm_fast.kernels.{folder}.kernel")
        return getattr(kernel, function)(*arguments)

    def decorate(shapes: Callable[P, R]) -> Callable[P, R]:
        full = f"storm_fast::{name}"
        torch.library.define(full, torch.library.infer_schema(shapes, mutates_args=mutates))
        torch.library.impl(full, "cpu", launch)
        torch.library.impl(full, "cuda", _on_its_device(launch))
        torch.library.register_fake(full, shapes)
        made: Callable[P, R] = getattr(torch.ops.storm_fast, name).default
        return made

    return decorate
