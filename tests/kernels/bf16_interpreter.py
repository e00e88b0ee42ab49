"""bfloat16 in Triton's interpreter, which otherwise computes with its raw 16 bits and truncates when it stores.

`install` replaces four places of the interpreter: conversions, dots, arithmetic, and reductions with scans. Each
widens to float32, computes, and rounds to nearest even, as compiled kernels do. It also lets a number of the kernel be
a loop's bound, which Triton 3.6 cannot do beside NumPy 2.4.
"""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widen(bits: Any) -> Any:
    """The float32 values of bfloat16 bit patterns."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: Any) -> Any:
    """The bfloat16 bit patterns nearest to float32 values, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _is_bf16(handle: Any) -> bool:
    return getattr(handle.dtype, "scalar", handle.dtype) == tl.bfloat16


def _widened(handle: Any) -> Any:
    return interpreter.TensorHandle(widen(handle.data), tl.float32) if _is_bf16(handle) else handle


def _tensor(data: Any, dtype: Any) -> Any:
    kind = tl.block_type(dtype, list(data.shape)) if data.shape else dtype
    return tl.core.tensor(interpreter.TensorHandle(data, dtype), kind)


def install() -> None:
    """Patch the interpreter of this process."""
    convert = interpreter._convert_float

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.bfloat16 and target == tl.float32:
            return widen(data)
        if source == tl.float32 and target == tl.bfloat16:
            return narrow(data)
        return convert(data, source, target, rounding)

    interpreter._convert_float = convert_float

    builder = interpreter.InterpreterBuilder
    dot, binary, unary = builder.create_dot, builder.binary_op, builder.unary_op

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), d, *rest)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if not (_is_bf16(left) and _is_bf16(right)):
            return binary(self, left, right, op)
        data = op(widen(left.data), widen(right.data))
        if data.dtype == np.bool_:
            return interpreter.TensorHandle(data, tl.int1)
        return interpreter.TensorHandle(narrow(data), tl.bfloat16)

    def unary_op(self: Any, x: Any, op: Any) -> Any:
        if not _is_bf16(x):
            return unary(self, x, op)
        return interpreter.TensorHandle(narrow(op(widen(x.data))), tl.bfloat16)

    builder.create_dot, builder.binary_op, builder.unary_op = create_dot, binary_op, unary_op

    reduce = interpreter.ReduceScanOpInterface
    apply = reduce.apply

    def widening_apply(self: Any, x: Any) -> Any:
        if not isinstance(x, tuple):
            return self.apply((x,))[0]
        was_bf16 = [part.dtype.scalar == tl.bfloat16 for part in x]
        wide = tuple(
            _tensor(widen(part.handle.data), tl.float32) if was else part for part, was in zip(x, was_bf16, strict=True)
        )
        out = apply(self, wide)
        return tuple(
            _tensor(narrow(part.handle.data), tl.bfloat16) if was and part.dtype.scalar == tl.float32 else part
            for part, was in zip(out, was_bf16, strict=True)
        )

    reduce.apply = widening_apply

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, *rest: Any) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())  # an array of one element

    interpreter._patch_lang_tensor = patch_lang_tensor
