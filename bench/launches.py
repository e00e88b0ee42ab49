"""How many launches a call takes: `python -m bench.launches` prints the columns of the tables in kernels/README.md.

`python -m bench.launches phases [PRESET]` counts each phase of a step of preset `storm` or another: eager, with
Triton's kernels, and of the released code where STORM_RELEASED names a checkout; `--small` on few rows. A captured
phase is one launch of the host; what its graph holds is the column of the kernels.

On a CPU, the ATen calls that are neither views nor allocations, of the kernels with Triton's launches, none of which
runs. On a GPU, what the profiler saw the device do. An operation's count does not depend on the sizes, except that the
reference of the lambda-return loops over its horizon of 16; on a CPU a few calls of a whole phase do.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.instrument.forms import DEVICE, IS_GPU
from storm_fast.config import preset
from storm_fast.engine.precision import choose
from storm_fast.kernels import backend
from storm_fast.kernels.norm import reference as norm_reference
from storm_fast.kernels.spec import Draw, Spec, differentiable, every, gradients
from storm_fast.model.onehot import OneHotLinear

_FREE = {"empty", "empty_like", "new_empty", "detach", "_unsafe_view", "set_", "alias"}


def is_launch(func: Any) -> bool:
    """Whether an ATen call makes the device do something."""
    return not func.is_view and func.namespace == "aten" and func.__name__.split(".")[0] not in _FREE


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        dense = Tensor.contiguous

        def contiguous(x: Tensor) -> Tensor:
            self.launches += not x.is_contiguous()
            return dense(x)

        self._contiguous = contiguous

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func.namespace == "storm_fast":  # one of ours, inside of which this mode is off
            with mock.patch.object(Tensor, "contiguous", self._contiguous):
                return func(*args, **(kwargs or {}))
        self.launches += is_launch(func)
        return func(*args, **(kwargs or {}))


def count(call: Callable[[], object], kernels: backend.Backend) -> int:
    """Launches of one call, backward passes in it included."""
    with backend.using(kernels):
        if IS_GPU:
            return _seen_by_the_profiler(call)
        names: list[str] = []
        with recorded(names) if kernels == "triton" else nullcontext(), _Counter() as counter:
            call()
        return counter.launches + len(names)


def _seen_by_the_profiler(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that the device ran; the first call compiles."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.is_user_annotation for event in on_device)


@contextmanager
def recorded(names: list[str]) -> Iterator[None]:
    """Triton's launches in the block, by name; none of them runs."""
    from triton.runtime.jit import JITFunction

    def record(self: Any, *args: Any, **__: Any) -> None:
        names.append(self.__name__)
        for x in args:  # nothing is computed, and what indexes must not be what the memory held
            if isinstance(x, Tensor) and x.dtype == torch.int64 and x.ndim:
                x.zero_()

    with mock.patch.object(JITFunction, "run", record):
        yield


def tables() -> dict[str, tuple[int, int]]:
    """Launches of the reference and of the kernels: of each operation's pass forward, and backward where it has one."""
    found = {}
    for spec in every():
        if not spec.full:
            continue
        # No count depends on the number of rows. The widths are the model's.
        sizes = min(use.sizes for use in spec.full.values())
        eager, ours = (_launches(spec, sizes, kernels, False) for kernels in _KERNELS)
        found[spec.name] = eager, ours
        if any(use.learns for use in spec.full.values()):
            both_eager, both_ours = (_launches(spec, sizes, kernels, True) for kernels in _KERNELS)
            found[f"{spec.name}, backward"] = both_eager - eager, both_ours - ours
    return found


_KERNELS: tuple[backend.Backend, ...] = ("reference", "triton")


def _launches(spec: Spec, sizes: tuple[int, ...], kernels: backend.Backend, learns: bool) -> int:
    """Of one call in bf16, and where it learns of its gradients too."""
    inputs = spec.inputs(Draw(0, DEVICE, spec.measured_dtype, learns), *sizes)

    def call() -> None:
        gradients(spec.call(*inputs), inputs, incoming)

    with _narrowed(), backend.using("reference"):
        incoming = tuple(map(_ones, differentiable(spec.call(*inputs)))) if learns else ()
    with _narrowed():
        return count(call, kernels)


def _ones(x: Tensor) -> Tensor:
    """A gradient for a result: dense, images in its layout, as what follows leaves them."""
    is_image = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.ones_like(x) if is_image else torch.ones(x.shape, dtype=x.dtype, device=DEVICE)


def _narrowed() -> Any:
    """Autocast's dtypes of a normalisation as they are on a GPU."""
    return mock.patch.object(norm_reference, "NARROWED", ("cuda", "cpu"))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """A GPU's dtypes under autocast, and one-hot products in full: a gather would read what no kernel wrote."""
    with mock.patch.object(OneHotLinear, "forward", OneHotLinear.multiplied), _narrowed():
        yield


def phases(name: str = "storm", is_small: bool = False) -> dict[str, dict[str, int]]:
    """Launches of each phase of a preset, by form; `is_small`, on few rows, which changes a CPU's counts by a few."""
    from bench.instrument.ours import ACTIONS, Ours
    from bench.instrument.released import Released, why_absent

    config, precision = preset(name), choose(DEVICE.type, "bf16")
    config = replace(config, loop=replace(config.loop, capacity=2000))
    if is_small:
        few = {"imagine_batch": 4 * config.agent.agent_updates, "imagine_demonstration_batch": 0}
        config = replace(config, model=replace(config.model, batch=2), imagine=replace(config.imagine, **few))
    forms: dict[str, Any] = {"eager": Ours(config, precision), "kernels": Ours(config, precision)}
    if why_absent() is None and name == "storm" and not is_small:
        forms["released"] = Released(DEVICE, ACTIONS, torch.bfloat16)
    found: dict[str, dict[str, int]] = {}
    for phase in forms["eager"].calls:
        for name, form in forms.items():
            call = form.calls[phase]
            with as_on_a_gpu():
                with backend.using("reference"):
                    call()  # the first makes an optimiser's moments
                found.setdefault(phase, {})[name] = count(call, "triton" if name == "kernels" else "reference")
    return found


def _print_phases(names: list[str], is_small: bool) -> None:
    found = phases(*names, is_small=is_small)
    forms = list(found["act"])
    sys.stdout.write(f"| phase | {' | '.join(forms)} |\n|---|{'---|' * len(forms)}\n")
    for phase, counts in found.items():
        sys.stdout.write(f"| {phase} | {' | '.join(str(counts[form]) for form in forms)} |\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["phases"]:
        words = sys.argv[2:]
        _print_phases([word for word in words if word != "--small"], "--small" in words)
        sys.exit()
    sys.stdout.write("| | eager launches | kernel launches |\n|---|---|---|\n")
    for operation, (eager, kernels) in tables().items():
        sys.stdout.write(f"| {operation} | {eager} | {kernels} |\n")
