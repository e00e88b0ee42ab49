"""What the benchmarks run on, and in what state: a figure from a throttled or shared device says so."""

import os
import platform
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.forms import IS_GPU

# Bits of nvmlDeviceGetCurrentClocksEventReasons that mean "slower than it could be"; idle and chosen clocks do not.
_THROTTLE = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_BUSY_SHARE = 0.1  # of the cores, taken by others, above which a machine is called shared


def device_name() -> str:
    """As tables and the names of result files have it."""
    if IS_GPU:
        return torch.cuda.get_device_name()
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores"


def slug(name: str) -> str:
    """A file's name from a device's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe() -> dict[str, Any]:
    """Device, versions and what the processor can do; nothing that names the machine or its owner."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"threads": torch.get_num_threads(), "cpu": _processor()}
    versions |= {"cores": len(os.sched_getaffinity(0)), "instructions": torch.backends.cpu.get_cpu_capability()}
    if IS_GPU:
        driver = _told(_nvml(), lambda: _nvml().nvmlSystemGetDriverVersion())
        versions |= {"cuda": torch.version.cuda, "driver": driver}
    return {"device": device_name()} | versions


def state() -> dict[str, Any]:
    """Clocks, power, temperature and what slows the device at this moment; of a CPU, what all programs have used."""
    return gpu_state(_nvml()) if IS_GPU else cpu_state()


def gpu_state(nvml: Any) -> dict[str, Any]:
    """The chosen GPU by NVML; None for what its driver does not tell."""
    gpu = _told(nvml, lambda: _handle(nvml))
    reasons = _told(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)) or 0
    power_mw = _told(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(gpu))
    processes = _told(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(gpu))
    return {
        "sm_mhz": _told(nvml, lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        "sm_mhz_most": _told(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        "memory_mhz": _told(nvml, lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
        "power_w": None if power_mw is None else power_mw / 1e3,
        "temperature_c": _told(nvml, lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
        "throttled_by": [name for bit, name in _THROTTLE.items() if reasons & bit],
        "processes": None if processes is None else len(processes),
    }


def _told(nvml: Any, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except nvml.NVMLError:
        return None


_SAMPLES: list[dict[str, Any]] = []


def sample() -> None:
    """Note the state of a GPU that is at work: idle, it is never throttled."""
    if IS_GPU:
        _SAMPLES.append(state())


def samples() -> list[dict[str, Any]]:
    """What was noted so far."""
    return list(_SAMPLES)


def cpu_state() -> dict[str, Any]:
    """Seconds that all programs, this one, and other machines on the same processor have used of its cores."""
    own = os.times()
    now: dict[str, Any] = {"at_s": time.monotonic(), "own_s": own.user + own.system}
    now["own_s"] += own.children_user + own.children_system
    stat = Path("/proc/stat")
    if stat.exists():  # Linux
        # user nice system idle iowait irq softirq steal, in ticks
        ticks = [int(x) / os.sysconf("SC_CLK_TCK") for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
        now |= {"busy_s": sum(ticks) - ticks[3] - ticks[4] - ticks[7], "stolen_s": ticks[7]}
    return now


def troubles(start: dict[str, Any], end: dict[str, Any], at_work: list[dict[str, Any]]) -> list[str]:
    """What speaks against figures taken between two states; empty where nothing does."""
    found = []
    if "sm_mhz" in start:
        states = [start, *at_work, end]
        reasons = sorted({reason for at in states for reason in at["throttled_by"]})
        if reasons:
            clock = min((at["sm_mhz"] for at in at_work if at["sm_mhz"]), default=None)
            found.append(f"throttled: {', '.join(reasons)}; lowest clock at work {clock or '?'} MHz")
        if max(at["processes"] or 0 for at in states) > 1:
            found.append("shared: another process on the device")
    elif "busy_s" in start:
        cores_s = (end["at_s"] - start["at_s"]) * len(os.sched_getaffinity(0))
        others = (end["busy_s"] - start["busy_s"] - (end["own_s"] - start["own_s"])) / cores_s
        stolen = (end["stolen_s"] - start["stolen_s"]) / cores_s
        if others > _BUSY_SHARE:
            found.append(f"shared: other programs took {others:.0%} of the cores")
        if stolen > _BUSY_SHARE:
            found.append(f"shared: other machines took {stolen:.0%} of the cores")
    return found


def joules() -> float:
    """What the GPU has used since its driver was loaded; NaN where the driver does not tell."""
    nvml = _nvml()
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(_handle(nvml))) / 1e3
    except nvml.NVMLError:
        return float("nan")


@cache
def _nvml() -> Any:
    import pynvml  # here, since machines without a GPU have no driver library to load

    pynvml.nvmlInit()
    return pynvml


@cache
def _handle(nvml: Any) -> Any:
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")


def _processor() -> str:
    """What the processor calls itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
