"""Where a form runs and is timed: within this process, or in one of its own.

In its own, what a form tells its process, ours to keep its pages (storm_fast/allocator.py), is told to no other form,
and its heap and its peak are what a training run of it has. What that changes is in bench/LOG.md.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from bench.instrument import footprint
from bench.instrument.timer import wait

Calls = Mapping[str, Callable[[], None]]


class Here:
    """What `make(*arguments)` gives, by name, in this process."""

    def __init__(self, make: Callable[..., Calls], *arguments: Any, warmup: int) -> None:
        """Make the calls and run each of them `warmup` times, in turn."""
        before_mb = footprint.before_mb()
        self._calls = make(*arguments)
        for _ in range(warmup):
            self.run(self._calls)
        wait()
        self.added_mb = footprint.added_mb(before_mb)
        """memory that making and running them added, at the peak"""

    def run(self, names: Iterable[str]) -> None:
        """Make these calls, without waiting for the device."""
        for name in names:
            self._calls[name]()

    def timed(self, name: str) -> tuple[float, float]:
        """Seconds of one call between two waits for the device, and of those the host's."""
        wait()
        start_s = time.perf_counter()
        self._calls[name]()
        host_s = time.perf_counter() - start_s
        wait()
        return time.perf_counter() - start_s, host_s

    def close(self) -> None:
        """Nothing: it goes with the process."""


class Apart:
    """As `Here`, in a process of its own, which sleeps while others take their turn.

    `make` and its arguments go there pickled; what is patched here is not patched there.
    """

    def __init__(self, make: Callable[..., Calls], *arguments: Any, warmup: int) -> None:
        """As of `Here`. Raises RuntimeError with what the other process raised."""
        context = multiprocessing.get_context("spawn")  # a fork would lack OpenMP's threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments, warmup), daemon=True)
        self._process.start()
        theirs.close()
        self.added_mb: float = self._answer()

    def timed(self, name: str) -> tuple[float, float]:
        """As of `Here`."""
        self._pipe.send(name)
        took_s, host_s = self._answer()
        return took_s, host_s

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            answer, error = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process ended with exit code {self._process.exitcode}") from None
        if error is not None:
            raise RuntimeError(error)
        return answer


def _serve(pipe: Connection, make: Callable[..., Calls], arguments: tuple[Any, ...], warmup: int) -> None:
    """Answer one name after another until the other end is closed."""
    try:
        here = Here(make, *arguments, warmup=warmup)
        pipe.send((here.added_mb, None))
        while True:
            pipe.send((here.timed(pipe.recv()), None))
    except EOFError:
        pass
    except Exception as error:
        pipe.send((None, f"{type(error).__name__}: {error}"))
