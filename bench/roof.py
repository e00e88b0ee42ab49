"""Launch by launch, what a step moves and multiplies, and how fast a GPU could: `python -m bench.roof [PRESET]`.

For each phase of a step at full size: its launches, the bytes that they read and write, their operations, and the least
time of each at measured ceilings (an H100's, of the stored benchmarks; `--device` names another's folder in
bench/results/): the longest of its bytes, its operations and an empty launch in a graph. Their sum is the ledger of a
phase: what it would take if every launch reached its roof, and so how much can be won without changing what is
launched. Below it stand the calls that take most of it.

Nothing of this is timed, and no GPU is needed: on a CPU the calls are those that a GPU makes, with Triton's launches
counted and not run. Bytes are those of a call's tensors, each once, which caches may undercut and a kernel with several
passes exceeds.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.instrument.ceilings import Ceilings
from bench.instrument.forms import DEVICE
from bench.instrument.ours import Ours
from bench.launches import as_on_a_gpu, is_launch, recorded
from storm_fast.config import PRESETS, Config, preset
from storm_fast.engine.precision import choose
from storm_fast.kernels import backend

RESULTS = Path(__file__).parent / "results"
SHOWN = 12

_PICKED = {"index_select", "index", "gather", "embedding", "first_conv", "first_conv_backward"}
"""Operations that read of their first tensor only as much as they make of it."""

_OVERWRITTEN = {"copy_", "_foreach_copy_", "zero_", "fill_", "bernoulli_", "random_"}
"""Operations that do not read what they write in place."""


class Row(NamedTuple):
    """One call of a phase: a launch, or several of one operation."""

    name: str
    shapes: str
    launches: int
    bytes: int
    flops: int

    def floor_s(self, ceilings: Ceilings) -> float:
        """The least time."""
        moved_s, multiplied_s = self.bytes / ceilings.bytes_per_s, self.flops / ceilings.bf16_flops_per_s
        return max(self.launches * ceilings.node_s, moved_s, multiplied_s)


@dataclass(frozen=True)
class Phase:
    """The ledger of a phase."""

    rows: list[Row]

    @property
    def launches(self) -> int:
        """Of the device."""
        return sum(row.launches for row in self.rows)

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(row.bytes for row in self.rows)

    @property
    def flops(self) -> int:
        """Of products and convolutions."""
        return sum(row.flops for row in self.rows)

    def floor_s(self, ceilings: Ceilings) -> float:
        """The sum of all calls'."""
        return sum(row.floor_s(ceilings) for row in self.rows)


class _Ledger(TorchDispatchMode):
    """Notes every call that a GPU would launch something for."""

    def __init__(self, launched: list[str]) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._launched = launched  # Triton's launches so far

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        before = len(self._launched)
        result = func(*args, **(kwargs or {}))
        launches = len(self._launched) - before if func.namespace == "storm_fast" else int(is_launch(func))
        if launches:
            packet = func._overloadpacket
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=result) if packet in flop_registry else 0
            name = func.__name__.split(".")[0]
            shapes = " ".join("x".join(map(str, x.shape)) for x in list(_tensors((args, kwargs)))[:3])
            self.rows.append(Row(name, shapes, launches, _bytes(func, args, kwargs or {}, result), flops))
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _held(x: Tensor) -> int:
    """Bytes of a tensor's own elements; an expanded axis is one."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * x.element_size()


def _bytes(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    """Read and written by one call."""
    name = func.__name__.split(".")[0]
    if name in _CACHES:
        return _cached(name, *args) + _held(result)
    read, written = 0, 0
    known: set[int] = set()
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        for x in _tensors(value):
            known.add(x.data_ptr())
            written += _held(x) if is_written else 0
            read += 0 if is_written and (argument.is_out or name in _OVERWRITTEN) else _held(x)
    made = sum(_held(x) for x in _tensors(result) if x.data_ptr() not in known)
    if name in _PICKED:
        source = next(_tensors(args))
        taken = next(_tensors(result))
        picked = taken.numel() * source.element_size()
        if source.ndim == 4 and source.shape[1:] != taken.shape[1:]:  # frames, of which an index names some
            picked = len(taken) * source[0].numel() * source.element_size()
        read += min(picked, _held(source)) - _held(source)
    return read + written + made


_CACHES = {"attention_step", "attention_prefill"}
"""Operations that write some places of a cache of keys and values, and read those before them."""


def _cached(name: str, qkv: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, position: int = 0) -> int:
    """Bytes of the input, and of the places of the cache that a call writes or reads."""
    place = (_held(k_BHSK) + _held(v_BHSK)) // k_BHSK.shape[2]
    return _held(qkv) + place * (position + 1 if name == "attention_step" else qkv.shape[1])


@contextmanager
def _ledger() -> Iterator[_Ledger]:
    launched: list[str] = []
    with recorded(launched), _Ledger(launched) as ledger:
        yield ledger


def phases(config: Config) -> dict[str, Phase]:
    """The ledgers of a configuration's phases in bf16 with Triton's kernels."""
    ours = Ours(replace(config, loop=replace(config.loop, capacity=2000)), choose(DEVICE.type, "bf16"))
    return {phase: Phase(_rows(call)) for phase, call in ours.calls.items()}


def _rows(call: Callable[[], None]) -> list[Row]:
    with as_on_a_gpu():
        with backend.using("reference"):
            call()  # the first makes an optimiser's moments
        with backend.using("triton"), _ledger() as ledger:
            call()
    return ledger.rows


def ceilings_of(folder: str) -> Ceilings:
    """Those of the stored benchmarks of a device."""
    stored = json.loads((RESULTS / folder / "benchmarks.json").read_text())
    return Ceilings(**_found(stored, "ceilings"))


def _found(value: Any, key: str) -> Any:
    """The first value of that key in nested JSON."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        return next((found for found in (_found(part, key) for part in value) if found is not None), None)
    return None


def table(phases: dict[str, Phase], ceilings: Ceilings, config: Config) -> str:
    """A line a phase, and one for a step, in which some phases fall due once in several."""
    loop = config.loop
    every = {"model": loop.model_every, "imagine": loop.agent_every, "agent": loop.agent_every}
    lines, step = ["| phase | launches | MB | GFLOP | floor, ms |", "|---|---|---|---|---|"], [0.0] * 4
    for name, phase in phases.items():
        row = [phase.launches, phase.bytes / 1e6, phase.flops / 1e9, 1e3 * phase.floor_s(ceilings)]
        step = [whole + part / every.get(name, 1) for whole, part in zip(step, row, strict=True)]
        lines.append(_line(name, row))
    return "\n".join([*lines, _line("a step", step), ""])


def _line(name: str, row: list[float]) -> str:
    launches, mb, gflop, floor_ms = row
    return f"| {name} | {launches:.0f} | {mb:,.1f} | {gflop:,.1f} | {floor_ms:.3f} |"


def heaviest(phase: Phase, ceilings: Ceilings, shown: int) -> str:
    """The calls of a phase that take most of its floor, those of one operation and shape together."""
    calls: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in phase.rows:
        calls[row.name, row.shapes].append(row)
    lines = []
    for rows in sorted(calls.values(), key=lambda rows: -Phase(rows).floor_s(ceilings))[:shown]:
        part = Phase(rows)
        lines.append(
            f"  {1e6 * part.floor_s(ceilings):8.1f} us {part.launches:5d} x {part.bytes / 1e6:9.1f} MB "
            f"{part.flops / 1e9:8.1f} GFLOP  {rows[0].name} {rows[0].shapes}\n"
        )
    return "".join(lines)


def main(argv: list[str]) -> None:
    """Print the ledger of a preset."""
    parser = argparse.ArgumentParser(prog="python -m bench.roof")
    parser.add_argument("preset", nargs="?", default="storm", choices=sorted(PRESETS))
    parser.add_argument("--device", default="nvidia-h100-80gb-hbm3", help="whose ceilings: a folder in bench/results/")
    parser.add_argument("--shown", type=int, default=SHOWN, help="how many calls of each phase")
    words = parser.parse_args(argv)
    if not (RESULTS / words.device / "benchmarks.json").is_file():
        have = sorted(path.parent.name for path in RESULTS.glob("*/benchmarks.json"))
        sys.exit(f"error: want --device of {', '.join(have)}; got {words.device}")
    config = preset(words.preset)
    ceilings = ceilings_of(words.device)
    sys.stdout.write(
        f"# {words.preset} at the ceilings of {words.device}: {ceilings.bytes_per_s / 1e12:.2f} TB/s, "
        f"{ceilings.bf16_flops_per_s / 1e12:.0f} TFLOP/s, {1e6 * ceilings.node_s:.2f} us a launch\n"
    )
    found = phases(config)
    sys.stdout.write(table(found, ceilings, config))
    for name, phase in found.items():
        sys.stdout.write(f"\n{name}:\n{heaviest(phase, ceilings, words.shown)}")


if __name__ == "__main__":
    main(sys.argv[1:])
