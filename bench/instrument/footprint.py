"""Memory that something adds: resident in the process on a CPU, set aside on the device on a GPU; both at the peak."""

import ctypes
import gc
import platform
from pathlib import Path

import torch

from bench.instrument.forms import IS_GPU

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def before_mb() -> float:
    """What is held now, once all that is unused has been given back; a new peak counts from here on."""
    gc.collect()
    if IS_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return held_mb()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # training tells the allocator to keep its pages
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")  # proc(5): VmHWM starts anew
    return held_mb()


def held_mb() -> float:
    """What is held now."""
    return torch.cuda.memory_reserved() / 2**20 if IS_GPU else _status_mb("VmRSS")


def added_mb(before: float) -> float:
    """The peak since `before_mb` gave `before`, less that. A graph's private pool counts. NaN where nothing tells."""
    return (torch.cuda.max_memory_reserved() / 2**20 if IS_GPU else _status_mb("VmHWM")) - before


def _status_mb(name: str) -> float:
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []  # Linux
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(name)), float("nan"))
