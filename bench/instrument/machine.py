"""What the benchmarks run on, and in what state: a figure from a throttled or shared device says so."""

import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.instrument.forms import IS_GPU
from storm_fast.engine.precision import choose

# Bits of nvmlDeviceGetCurrentClocksEventReasons that mean "slower than it could be"; idle and chosen clocks do not.
# At full load the power cap holds every GPU of a data centre: it is told, and distrusted where it costs much.
_CAP = "power cap"
_THROTTLE = {
    0x4: _CAP,
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_CLOCK_SHARE = 0.9  # of the highest clock, below which a capped GPU is not what its name says
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
    has = {"AVX512_BF16": torch.cpu._is_avx512_bf16_supported(), "AMX": torch.cpu._is_amx_tile_supported()}
    instructions = [torch.backends.cpu.get_cpu_capability(), *(name for name, there in has.items() if there)]
    versions |= {"cores": len(os.sched_getaffinity(0)), "instructions": ", ".join(instructions)}
    versions |= {f"cpu_{key}": _cpuinfo(name) for key, name in (("family", "cpu family"), ("model", "model"))}
    versions |= {"triton": _version("triton"), "dtype": str(choose("auto", "auto").dtype).removeprefix("torch.")}
    if IS_GPU:
        driver = _told(_nvml(), lambda: _nvml().nvmlSystemGetDriverVersion())
        gpu = torch.cuda.get_device_properties()
        versions |= {"cuda": torch.version.cuda, "driver": driver, "capability": f"{gpu.major}.{gpu.minor}"}
        versions |= {"gpu_gb": round(gpu.total_memory / 2**30, 1), "processors": gpu.multi_processor_count}
    return {"device": device_name()} | versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def limits() -> dict[str, Any]:
    """What NVML says that a GPU may reach; empty on a CPU."""
    return gpu_limits(_nvml()) if IS_GPU else {}


def gpu_limits(nvml: Any) -> dict[str, Any]:
    """Of the chosen GPU; None for what its driver does not tell."""
    gpu = _told(nvml, lambda: _handle(nvml))
    power_mw = _told(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu))
    memory_mhz = _told(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM))
    bits = _told(nvml, lambda: nvml.nvmlDeviceGetMemoryBusWidth(gpu))
    return {
        "sm_mhz": _told(nvml, lambda: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        "memory_mhz": memory_mhz,
        # Two transfers in each period of the clock that NVML states.
        "bytes_per_s": None if None in (bits, memory_mhz) else 2 * memory_mhz * 1e6 * bits / 8,
        "power_w": None if power_mw is None else power_mw / 1e3,
    }


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
    if nvml is None:
        return None
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
        reasons = sorted({reason for at in states for reason in at["throttled_by"]} - {_CAP})
        if reasons:
            clock = min((at["sm_mhz"] for at in at_work if at["sm_mhz"]), default=None)
            found.append(f"throttled: {', '.join(reasons)}; lowest clock at work {clock or '?'} MHz")
        found += [line for line, share in _capped(at_work) if share < _CLOCK_SHARE]
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


def remarks(at_work: list[dict[str, Any]]) -> list[str]:
    """What is to be known of figures that can be trusted."""
    found = [line for line, share in _capped(at_work) if share >= _CLOCK_SHARE]
    if any(at["sm_mhz"] is None for at in at_work):
        found.append("NVML does not tell the clocks: whether the device was throttled is not known")
    return found


def _capped(at_work: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """A line, and the median clock at work over the highest, where the limit of power was reached."""
    shares = [at["sm_mhz"] / at["sm_mhz_most"] for at in at_work if at["sm_mhz"] and at["sm_mhz_most"]]
    if shares and any(_CAP in at["throttled_by"] for at in at_work):
        share = statistics.median(shares)
        yield f"{_CAP}: the median clock at work was {share:.0%} of the highest", share


def joules() -> float:
    """What the GPU has used since its driver was loaded; NaN where the driver does not tell."""
    nvml = _nvml()
    used_mj = _told(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(_handle(nvml)))
    return float("nan") if used_mj is None else used_mj / 1e3


@cache
def _nvml() -> Any:
    """NVIDIA's library; None where it cannot be used."""
    import pynvml  # here, since machines without a GPU have no driver library to load

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


@cache
def _handle(nvml: Any) -> Any:
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")


def _processor() -> str:
    """What the processor calls itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(name: str) -> str | None:
    """Of the first processor; None where the system does not tell."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return found[1].strip() if found else None
