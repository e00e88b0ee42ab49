"""How long each phase of the step takes, on the device's own clock, without waiting for it."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


class PhaseClock:
    """Milliseconds of each phase between two readings.

    On a GPU a phase lasts from one event of its stream to another, including time in which the GPU waits for the host.
    On a CPU it is the host's time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._device_ms: dict[str, float] = {}
        self._host_ms: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._spare: list[torch.cuda.Event] = []
        self._since_s = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block as part of a phase in which the device works."""
        if self._device.type == "cuda":
            start, end = self._event(), self._event()
            start.record()
            yield
            end.record()
            self._events.append((phase, start, end))
        else:
            with self._host(phase, self._device_ms):
                yield

    def host(self, phase: str) -> AbstractContextManager[None]:
        """Count the block as part of a phase in which the host works, or waits, and the device need not."""
        return self._host(phase, self._host_ms)

    def pop(self, steps: int) -> dict[str, float]:
        """Milliseconds per step of each phase since the last call, and the share of the time in phases of the device.

        That share does not say how busy a GPU is; `gpu_busy`, added there, does. Waits for the phases to end.
        """
        # Read first: the wait below leaves the GPU idle.
        busy = gpu_busy(self._device) if self._device.type == "cuda" else {}
        for phase, start, end in self._events:
            end.synchronize()
            self._device_ms[phase] = self._device_ms.get(phase, 0.0) + start.elapsed_time(end)
            self._spare += (start, end)
        now_s = time.perf_counter()
        in_phases = sum(self._device_ms.values()) / (1e3 * (now_s - self._since_s))
        means = {f"time/{phase}_ms": ms / steps for phase, ms in (self._device_ms | self._host_ms).items()}
        self._device_ms, self._host_ms, self._events, self._since_s = {}, {}, [], now_s
        return means | {"time/in_phases": in_phases} | busy

    @contextmanager
    def _host(self, phase: str, into: dict[str, float]) -> Iterator[None]:
        start_s = time.perf_counter()
        yield
        into[phase] = into.get(phase, 0.0) + 1e3 * (time.perf_counter() - start_s)

    def _event(self) -> torch.cuda.Event:
        return self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)


def gpu_busy(device: torch.device) -> dict[str, float]:
    """The share of NVML's last sampling period, of a sixth of a second or longer, in which a kernel ran.

    Nothing where NVML does not tell, as for a part of a GPU.
    """
    import pynvml  # here, since machines without a GPU have no driver library to load

    try:
        return {"time/gpu_busy": torch.cuda.utilization(device) / 100}
    except (pynvml.NVMLError, RuntimeError):
        return {}
