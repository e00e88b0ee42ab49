"""Work for the sanitizers and for the memory: the compiled collector alone, threads, drops and errors included.

`python tests/envs/stress.py FOLDER [STEPS]` with FOLDER that of the compiled `_collector`; see sanitize.sh. With
STEPS it steps 64 games that many times in all and prints the memory held after each tenth.
"""

import contextlib
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from ale_py import roms


def settings(game: str, num_envs: int, num_threads: int) -> dict[str, Any]:
    """Arguments of the extension's constructor."""
    numbers = {"num_envs": num_envs, "num_threads": num_threads, "sticky": 0.25, "frame_skip": 4, "frame_cap": 400}
    shape = {"rows": 64, "columns": 64, "gray": False, "full_action_space": False}
    return {"rom": str(roms.get_rom_path(game))} | numbers | shape


def begin(module: Any, game: str, stock: bool) -> None:
    """Open games, start them anew and let them run, each in several threads."""
    collector = module.Collector(**settings(game, 6, 3), stock=stock)
    shown, last = np.zeros((2, 6, 64, 64, 3), np.uint8)
    for start in range(3):
        collector.reset(list(range(start, start + 6)), shown)
        collector.send(np.zeros(6, np.int64), shown, last)
        collector.recv()
        collector.emulate([0] * 60, 10)


def shake(module: Any) -> None:
    """A little of everything, from several threads."""
    # The first games of the process, so that the tables which ALE makes once are made by several threads at a time.
    several = [
        threading.Thread(target=begin, args=(module, game, stock))
        for game, stock in (("pong", False), ("breakout", True), ("ms_pacman", False))
    ]
    for one in several:
        one.start()
    for one in several:
        one.join()
    random = np.random.default_rng(0)
    for game, num_envs, num_threads in (("pong", 5, 3), ("breakout", 8, 2), ("ms_pacman", 1, 4), ("qbert", 3, 3)):
        gray = game == "qbert"
        collector = module.Collector(**settings(game, num_envs, num_threads) | {"gray": gray})
        shown, last = np.zeros((2, num_envs, 64, 64, 1 if gray else 3), np.uint8)
        for start in range(3):
            collector.reset([start] * num_envs, shown)
            for _ in range(60):
                collector.send(random.integers(0, collector.num_actions, num_envs), shown, last)
                collector.recv()
            collector.restore(collector.save())
            for bad in (np.full(num_envs, 99), np.zeros(num_envs + 1, np.int64)):
                try:
                    collector.send(bad, shown, last)
                except ValueError:
                    continue
                raise AssertionError("a bad action was taken")
        other = threading.Thread(target=intrude, args=(collector, shown))
        other.start()
        for _ in range(30):
            with contextlib.suppress(RuntimeError, ValueError):  # the other thread is inside, or was faster
                collector.send(np.zeros(num_envs, np.int64), shown, last)
                collector.recv()
        other.join()
        collector.reset([0] * num_envs, shown)
        collector.send(np.zeros(num_envs, np.int64), shown, last)
        del collector  # in the middle of a step


def intrude(collector: Any, shown: Any) -> None:
    """Call from a second thread, which is turned away whenever the first is inside."""
    for _ in range(50):
        for call in (collector.save, collector.recv, lambda: collector.emulate([0], 1)):
            with contextlib.suppress(RuntimeError, ValueError):
                call()


def soak(module: Any, steps: int) -> None:
    """Many steps of 64 games; the peak of memory must stop rising: an AssertionError where it does not."""
    N = 64
    collector = module.Collector(**settings("breakout", N, 2))
    shown, last = np.zeros((2, N, 64, 64, 3), np.uint8)
    collector.reset(list(range(N)), shown)
    random = np.random.default_rng(0)
    turns = max(10, steps // N)
    peaks = []
    for turn in range(turns):
        collector.send(random.integers(0, collector.num_actions, N), shown, last)
        collector.recv()
        if (turn + 1) % (turns // 10) == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sys.stdout.write(f"{(turn + 1) * N:9,d} steps, peak {peak / 1024:.1f} MB\n")
            sys.stdout.flush()
            peaks.append(peak)
    assert peaks[-1] <= peaks[len(peaks) // 2] + 1024, "the peak rose by more than 1 MB over the last half"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1]).resolve()))
    import _collector

    if len(sys.argv) > 2:
        soak(_collector, int(sys.argv[2]))
    else:
        shake(_collector)
        sys.stdout.write("stress: done\n")
