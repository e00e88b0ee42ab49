"""Where each phase of a step spends its time: `python -m bench.profile [FORM ...]`, forms as bench_step.py has them.

For every phase of preset `storm`, or of another with `--preset`, at full size: milliseconds of the whole call, and of
what runs in it, the longest first. On a GPU these are kernels, copies and fills in device time; on a CPU they are
operators in their own time, without what they call. Without FORM it is ours: captured on a GPU, `compiled` on a CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.bench_step import FORMS, OURS, PHASES, WARMUP, calls_of
from bench.instrument.forms import IS_GPU
from bench.instrument.timer import wait
from storm_fast.config import PRESETS, LoopConfig, preset

SHOWN = 14
TURNS = 3  # calls that a profile averages


class Row(NamedTuple):
    """What one kernel or operator takes of a call."""

    ms: float
    count: float
    name: str


def rows_of(call: Callable[[], object], turns: int = TURNS) -> list[Row]:
    """What runs in a call, the longest first; means of some calls."""
    activity = ProfilerActivity.CUDA if IS_GPU else ProfilerActivity.CPU
    kind = DeviceType.CUDA if IS_GPU else DeviceType.CPU
    with profile(activities=[activity]) as found:
        for _ in range(turns):
            call()
        wait()
    events = [e for e in found.key_averages() if e.device_type == kind and not e.is_user_annotation]
    took_us = [e.self_device_time_total if IS_GPU else e.self_cpu_time_total for e in events]
    rows = [Row(us / turns / 1e3, e.count / turns, e.key) for us, e in zip(took_us, events, strict=True)]
    return sorted(rows, reverse=True)


def table(phase: str, ms: float, rows: list[Row], shown: int = SHOWN) -> str:
    """A phase on some lines: the call, what ran in it together, and the longest of that."""
    busy_ms, count = sum(row.ms for row in rows), sum(row.count for row in rows)
    lines = [f"{phase}: {ms:.3f} ms, of which {busy_ms:.3f} ms in {count:.0f} {'kernels' if IS_GPU else 'operators'}"]
    lines += [f"  {row.ms:9.4f} ms {row.count:7.1f} x  {row.name[:110]}" for row in rows[:shown]]
    return "\n".join(lines) + "\n"


def _milliseconds(call: Callable[[], object], turns: int) -> float:
    took_s = []
    for _ in range(turns):
        wait()
        start_s = time.perf_counter()
        call()
        wait()
        took_s.append(time.perf_counter() - start_s)
    return 1e3 * statistics.median(took_s)


def step_ms(ms: dict[str, float], loop: LoopConfig) -> float:
    """Of one step, in which some phases fall due once in several."""
    once = ms["act"] + ms["append"] + ms["model"] / loop.model_every
    return once + (ms["imagine"] + ms["agent"]) / loop.agent_every


def main(argv: list[str]) -> None:
    """Profile each form and print its phases."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile")
    parser.add_argument("forms", nargs="*", metavar="FORM", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--preset", default="storm", choices=sorted(PRESETS), help="of the forms that are ours")
    arguments = parser.parse_args(argv)
    forms = arguments.forms
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        sys.exit(f"error: want forms of {', '.join(FORMS)}; got {', '.join(unknown)}")
    for form in forms or [OURS[-1]]:
        calls = calls_of(form, arguments.preset)
        for _ in range(WARMUP):
            for phase in PHASES:
                calls[phase]()
        sys.stdout.write(f"# {form}, preset {arguments.preset}, torch {torch.__version__}\n")
        ms = {}
        for phase in PHASES:
            ms[phase] = _milliseconds(calls[phase], 30 if IS_GPU else TURNS)
            sys.stdout.write(table(phase, ms[phase], rows_of(calls[phase])))
            sys.stdout.flush()
        if form in OURS:
            whole = step_ms(ms, preset(arguments.preset).loop)
            sys.stdout.write(f"a step, in which some phases fall due once in several: {whole:.3f} ms\n")


if __name__ == "__main__":
    main(sys.argv[1:])
