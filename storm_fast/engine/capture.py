"""CUDA graphs: each phase of the step is recorded once and then replayed as a single launch.

What may be recorded: a call without arguments that works on tensors which stay where they are, and never makes the
host wait for the device. `Watch` holds a call to the second, as far as a device, or a CPU in its place, can show it.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WARM_UPS = 3  # compile kernels, choose convolution algorithms, allocate workspaces and optimiser state

_READS = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"}
    | {"unique_dim", "_unique2", "unique_consecutive", "bincount", "repeat_interleave.Tensor"}
)
"""Operations that make the host wait for their result or for its shape."""

_CONSTANTS = frozenset({"lift_fresh", "lift_fresh_copy"})
"""What torch.tensor(...) becomes: a value on the host that every call copies to the device."""

_CALLS = frozenset({"cpu", "numpy", "tolist", "item", "__array__", "__bool__", "__float__", "__int__", "__index__"})
"""Methods that bring a tensor to the host; on a CPU the dispatcher does not see all of them."""


class HostReadError(RuntimeError):
    """A call made the host wait for the device, which a graph cannot record."""


class _Calls(TorchFunctionMode):
    """Refuses `_CALLS`, on behalf of a watch."""

    def __init__(self, watch: "Watch") -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make one call of torch's Python interface, or refuse it."""
        del types
        name = getattr(func, "__name__", "")
        if name in _CALLS:
            self._watch.last = f"Tensor.{name}"
            raise HostReadError(f"want operations that never make the host wait; got Tensor.{name}")
        return func(*args, **(kwargs or {}))


class Watch(TorchDispatchMode):
    """Inside the block, an operation that copies between host and device raises HostReadError.

    On a CPU, `.to("cpu")` and whatever a Triton launcher does go unnoticed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._calls = _Calls(self)
        self.last = "nothing yet"
        self.shapes: list[tuple[str, tuple[int, ...]]] = []  # of all results, in order

    def __enter__(self) -> "Watch":
        """Begin to watch."""
        self._calls.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._calls.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, or refuse it."""
        del types
        self.last = str(func)
        name = func.__name__
        short = name.split(".")[0]
        if name in _READS or short in _READS or short in _CONSTANTS or _has_mask(short, args) or _crosses(args, kwargs):
            raise HostReadError(f"want operations that never make the host wait; got {func}")
        result = func(*args, **(kwargs or {}))
        self.shapes += [(name, tuple(tensor.shape)) for tensor in _tensors(result)]
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a result or in arguments, however tuples and lists nest them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _has_mask(short: str, args: Any) -> bool:
    """Whether an index is a mask, whose number of hits the host would have to ask for."""
    if short not in ("index", "index_put", "index_put_", "_unsafe_index"):
        return False
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _crosses(args: Any, kwargs: Any) -> bool:
    """Whether host tensors meet device tensors; 0-d ones do not count, since kernels take them as numbers."""
    tensors = [x for x in _tensors((*args, *(kwargs or {}).values())) if x.ndim > 0]
    wanted = (kwargs or {}).get("device")
    devices = {x.device.type for x in tensors}
    if tensors and wanted is not None:
        devices.add(torch.device(wanted).type)
    return len(devices) > 1


@contextmanager
def unchanged(state: Callable[[], list[Tensor]], generators: list[torch.Generator]) -> Iterator[None]:
    """Restore, at the end of the block, every tensor and random state it changed; tensors created in it become zero.

    Args:
        state: gives all tensors that the block may write, the same objects at every call.
        generators: all that the block draws from, including torch's own.
    """
    before = {id(tensor): tensor.detach().clone() for tensor in state()}
    random = [generator.get_state() for generator in generators]
    yield
    with torch.no_grad():
        for tensor in state():
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)])
            else:  # an optimiser's moments, which its first step creates
                tensor.zero_()
    for generator, saved in zip(generators, random, strict=True):
        generator.set_state(saved)


@contextmanager
def naming(phase: str) -> Iterator[Watch]:
    """Give what to make the calls of a phase under: an error in the block then names the phase and the operation.

    Raises:
        RuntimeError: for any of the block's, but for memory that is not enough.
    """
    watch = Watch()
    try:
        yield watch
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"want a phase that CUDA can record; `{phase}` is not, at {watch.last}: {error} "
            f"(without --compile the step runs eagerly)"
        ) from error


@contextmanager
def uncollected() -> Iterator[None]:
    """Run Python's garbage collector before the block, and keep it off inside.

    An earlier run's graphs are in a reference cycle with its phases. Only the collector frees their memory, and it must
    not do so while another graph is being recorded.
    """
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The one stream for a device's warm-ups and captures: every further stream would bring its own workspaces."""
    return torch.cuda.Stream(device)


class Captured:
    """A call that is recorded at its first use, after warm-ups that leave no trace, and replayed afterwards.

    Its results stay in the graph's own pool, at fixed addresses, until the next replay overwrites them.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[], None],
        state: Callable[[], list[Tensor]],
        generators: list[torch.Generator],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Args: what to call it in errors, the call, what `unchanged` wants, and what to do before it is recorded."""
        self._name, self._call, self._state, self._generators = name, call, state, generators
        self._prepare = prepare
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Launch it.

        Raises:
            RuntimeError: at the first call, naming the operation that cannot be recorded.
        """
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        self._prepare()
        side = _side_stream(torch.cuda.current_device())
        side.wait_stream(torch.cuda.current_stream())
        with uncollected(), naming(self._name) as watch:
            with torch.cuda.stream(side), unchanged(self._state, self._generators):
                with watch:
                    self._call()
                for _ in range(_WARM_UPS):
                    self._call()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, stream=side), watch:
                self._call()
        return graph
