"""Every torch op behind the public functions keeps torch's contract, and none breaks a compiled graph."""

import importlib
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from storm_fast.kernels.spec import Draw, Spec, budgets, every, folders
from tests.kernels.calls import computed, copied
from tests.kernels.harness import COMPILERS, DEVICE

pytestmark = pytest.mark.usefixtures("triton")

SPECS = every()
# The smallest are enough: neither test looks at values of the kernels.
CALLS = [pytest.param(spec, next(iter(spec.small.values())), id=spec.name) for spec in SPECS]


class Recorder(TorchDispatchMode):
    """Our ops that are called in its block, with copies of what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.namespace == "storm_fast":
            self.calls.append((func, tuple(_copy(x) if isinstance(x, Tensor) else x for x in args)))
        return func(*args, **(kwargs or {}))


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_(x.requires_grad)


def recorded(spec: Spec, sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Recorder:
    inputs = spec.inputs(Draw(0, DEVICE, dtype, learns=spec.learns), *sizes)
    with Recorder() as recorder:
        computed(spec, inputs, 0)
    return recorder


@pytest.mark.parametrize("is_measured", [False, True], ids=["first dtype", "training's dtype"])
@pytest.mark.parametrize(("spec", "sizes"), CALLS)
def test_ops_keep_torchs_contract(spec: Spec, sizes: tuple[int, ...], is_measured: bool) -> None:
    calls = recorded(spec, sizes, spec.measured_dtype if is_measured else spec.dtypes[0]).calls
    assert calls, "the call reached no op"
    for op, args in calls:
        if "backward" in str(op):  # it has no gradient of its own, though it is given leaves
            args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
        torch.library.opcheck(op, args)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("spec", "sizes"), CALLS)
def test_compiles_without_a_graph_break(spec: Spec, sizes: tuple[int, ...], compiler: str) -> None:
    if spec.is_random and spec.learns:
        pytest.skip("draws anew: test_attention_kernel.py has it")
    inputs = spec.inputs(Draw(0, DEVICE, torch.float32, learns=spec.learns), *sizes)
    torch.compiler.reset()  # specifications of one function would exceed the number of its recompilations
    compiled = torch.compile(spec.call, fullgraph=True, backend=compiler)
    want, _ = computed(spec, copied(inputs), 0)
    got, _ = computed(spec.__class__(**(vars(spec) | {"call": compiled})), copied(inputs), 0)
    for mine, one in zip(got, want, strict=True):
        torch.testing.assert_close(mine, one)


def test_every_op_is_reached_and_every_launcher_exists() -> None:
    # Those of a package that are defined and never called would be checked by nobody.
    reached = {str(op) for spec in SPECS for op, _ in recorded(spec, next(iter(spec.small.values()))).calls}
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("storm_fast::")]
    assert reached == {name.replace("::", ".") + ".default" for name in names}


def test_every_kernel_has_a_budget() -> None:
    for folder in folders():
        kernel = importlib.import_module(f"storm_fast.kernels.{folder}.kernel")
        functions = {name: f.fn for name, f in vars(kernel).items() if name.startswith("_") and hasattr(f, "fn")}
        launched = {name for name, f in functions.items() if "tl.store(" in inspect.getsource(f)}
        assert launched
        assert launched <= set(budgets()), folder
