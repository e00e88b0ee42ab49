"""What describes an operation, once: tests, the compilation gate, benchmarks and the table of launches read it here.

Each folder of kernels/ has a `spec.py` with `SPECS`, its public functions as the model calls them, and `BUDGETS`, what
its kernels may use of a GPU. Whatever reads them asks `every`, so a new folder is listed nowhere.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from storm_fast.kernels.cost import Cost

Sizes = tuple[int, ...]


class Draw:
    """Random inputs: what a specification's `inputs` makes its tensors of."""

    def __init__(self, seed: int, device: torch.device | str, dtype: torch.dtype, learns: bool = False) -> None:
        """Args: the seed of all values, where they lie, what computes (`dtype`), and whether leaves have gradients."""
        self.device, self.dtype = torch.device(device), dtype
        self._learns = learns
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """Normal values of the computing dtype, or of another."""
        values = scale * torch.randn(shape, generator=self._generator, device=self.device)
        return values.to(dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Float32 in [0, 1)."""
        return torch.rand(shape, generator=self._generator, device=self.device)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers in [0, high)."""
        return torch.randint(high, shape, generator=self._generator, device=self.device, dtype=dtype)

    def leaf(self, x: Tensor) -> Tensor:
        """The tensor, with a gradient where gradients are taken."""
        return x.requires_grad_(self._learns)


class Blank(Draw):
    """Zeros in the place of random values, for those that look at a call and not at what it computes."""

    def __init__(self, dtype: torch.dtype, learns: bool = False) -> None:
        super().__init__(0, "cpu", dtype, learns)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:  # noqa: D102
        return torch.zeros(shape, dtype=dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:  # noqa: D102
        return torch.zeros(shape)

    def integers(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:  # noqa: D102
        return torch.zeros(shape, dtype=dtype)


class Use(NamedTuple):
    """A place where the model calls the function."""

    title: str
    """what a benchmark is called"""
    sizes: Sizes
    cost: Cost
    """of the pass forward, and where gradients are taken of both"""
    learns: bool = False
    """whether gradients are taken"""


@dataclass(frozen=True)
class Budget:
    """The most a kernel may use of a GPU: a fence against regressions, not a target."""

    registers: int
    """of a thread"""
    shared_kib: int = 1
    """of a block; 1 holds reductions across warps"""
    least_dots: Callable[[Mapping[str, Any], int, int], int] | None = None
    """the least number of tensor-core instructions, of a launch's arguments by name, its warps and the architecture;
    None where a kernel has no products"""
    tighter: Mapping[tuple[str, int], "Budget"] = field(default_factory=dict)
    """in its place, by `<spec>-<use>` in bfloat16 and architecture: the main path on the cards that it is meant for"""


@dataclass(frozen=True)
class Spec:
    """One public function."""

    name: str
    """of the operation's folder and of what is called"""
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    """the function, or a few lines around it that also return what it writes in place"""
    inputs: Callable[..., tuple[Any, ...]]
    """`inputs(draw, *sizes)`: its arguments"""
    small: Mapping[str, Sizes]
    """sizes for Triton's interpreter and for the sanitizer: odd ones, ones, and the largest that is admitted"""
    full: Mapping[str, Use]
    floors: Callable[..., tuple[float, ...]] = lambda *_: ()
    """`floors(*inputs, *incoming)`, with the gradients that come in: of each result, then of each leaf's gradient, the
    size of the terms that cancel in it, which bounds what float32 can keep; 0 for those that are left out"""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    """that it computes in; those of a benchmark and of the gate are bfloat16, or the only one"""
    is_random: bool = False
    """whether it draws by itself, from another stream in the kernel than in the reference"""
    tolerance: float = 1e-2
    """of a benchmark's forms: the largest |result - definition| / |definition|, in 2-norms"""
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """other implementations to be timed beside it, called likewise"""
    compared: str = ""
    """the specification whose forms are compared in the place of these, where these draw by themselves"""
    absent: Mapping[str, str] = field(default_factory=dict)
    """peers of the others that this one has not, and why"""

    @property
    def measured_dtype(self) -> torch.dtype:
        """What training on a GPU computes in."""
        return torch.bfloat16 if torch.bfloat16 in self.dtypes else self.dtypes[0]

    @property
    def learns(self) -> bool:
        """Whether it has gradients."""
        blank = Blank(self.dtypes[0], learns=True)
        inputs = self.inputs(blank, *next(iter(self.small.values())))
        return any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


Out = Tensor | tuple[Tensor, ...]
"""What a call gives"""


def results(out: Out) -> tuple[Tensor, ...]:
    """All of it."""
    return (out,) if isinstance(out, Tensor) else tuple(out)


def differentiable(out: Out) -> list[Tensor]:
    """What of it has a gradient."""
    return [x for x in results(out) if x.requires_grad]


def gradients(out: Out, inputs: tuple[Any, ...], incoming: tuple[Tensor, ...]) -> list[Tensor]:
    """The gradients of the leaves among the inputs, from one for each result that has one; none where there is none."""
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return list(torch.autograd.grad(differentiable(out), leaves, incoming)) if incoming else []


def folders() -> list[str]:
    """Operations, by the names of their folders."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/reference.py"))


def every() -> list[Spec]:
    """All public functions of all operations."""
    return [spec for folder in folders() for spec in _module(folder).SPECS]


def named(name: str) -> Spec:
    """The one of that name."""
    return next(spec for spec in every() if spec.name == name)


def budgets() -> dict[str, Budget]:
    """Of all kernels, by name."""
    return {name: budget for folder in folders() for name, budget in _module(folder).BUDGETS.items()}


def _module(folder: str) -> Any:
    return importlib.import_module(f"storm_fast.kernels.{folder}.spec")
