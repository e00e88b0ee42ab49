"""Compiles kernels side by side before they are needed.

Triton compiles a kernel when it is first launched, one after the other: of a whole step some sixty, each a second or a
large part of one. Most of that is spent in LLVM and in the assembler, which other threads need not wait for.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def compiling(threads: int | None = None) -> Iterator[list[str]]:
    """Launches in the block compile their kernels and do not run; all are compiled when it ends.

    What a kernel would have written is left as it was, and every int64 tensor given to one is zero afterwards: what
    indexes must not be what the memory held.

    Args:
        threads: that compile; by default one for each core.

    Yields:
        The names of the kernels launched so far.
    """
    import triton
    from triton.runtime.jit import JITFunction

    names: list[str] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> Any:
        names.append(self.__name__)
        for x in args:
            if isinstance(x, Tensor) and x.dtype == torch.int64 and x.ndim:
                x.zero_()
        return run(self, *args, **(options | {"warmup": True}))

    JITFunction.run = compile_only
    try:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool, triton.AsyncCompileMode(pool):
            yield names
    finally:
        JITFunction.run = run
