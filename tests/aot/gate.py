"""What a launch compiles to on a GPU that is not here: registers, spills, shared memory, tensor-core instructions."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 86, 89, 90, 100)
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}  # a block's limit on that card
BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}
# Ampere and Ada: HMMA; Hopper: HGMMA or HMMA; Blackwell: UTC..MMA or HMMA.
_TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")
_SPILL = re.compile(r"\b(STL|LDL)\b")


class Launch(NamedTuple):
    """One kernel launch: the function and what it was given, by name."""

    kernel: Any
    given: dict[str, Any]
    num_warps: int

    @property
    def name(self) -> str:
        """The kernel's."""
        return str(self.kernel.__name__)


class Compiled(NamedTuple):
    """What the compiler and the assembler said."""

    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    tensor_core_instructions: int


@contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del grid, warmup
        num_warps = kwargs.pop("num_warps", 4)
        names = [p.name for p in self.params]
        given = dict(zip(names, args, strict=False)) | kwargs
        given |= {p.name: p.default for p in self.params if p.name not in given and p.has_default}
        assert set(given) == set(names), f"options or arguments that the gate does not know: {set(given) ^ set(names)}"
        launches.append(Launch(self, given, num_warps))

    with mock.patch.object(JITFunction, "run", record):
        yield


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """Every launch that a launcher makes, with the arguments, constants and warps it really uses; none runs."""
    launches: list[Launch] = []
    with _recording(launches):
        call()
    assert launches, "nothing was launched"
    return launches


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch as the run time would: constants, divisibility by 16 and ones specialised."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.given[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and special):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and special:
                attributes[(i,)] = [["tt.divisibility", 16]]
    # Calls of several sizes often differ in nothing that the compiler is told.
    key = repr((launch.name, signature, constants, attributes, launch.num_warps, architecture))
    if key not in _COMPILED:
        source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": launch.num_warps})
        _COMPILED[key] = _inspect(compiled.asm["cubin"], compiled.metadata.shared)
    return _COMPILED[key]


_COMPILED: dict[str, Compiled] = {}


@cache
def _inspect(cubin: bytes, shared_bytes: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "--dump-resource-usage", file.name)
        assembly = _output("nvdisasm", "-c", file.name)
    registers, stack = (re.search(rf"{word}:(\d+)", usage) for word in ("REG", "STACK"))
    assert registers is not None
    assert stack is not None
    return Compiled(
        int(registers[1]),
        int(stack[1]),
        len(_SPILL.findall(assembly)),
        shared_bytes,
        len(_TENSOR_CORE.findall(assembly)),
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([BIN / tool, *arguments], capture_output=True, text=True, check=True).stdout
