"""Holds a run to a stored one of the same device: by ratios, since a time of another day is of another machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench import machine

RESULTS = Path(__file__).parent / "results"
MARGIN, WIDE_MARGIN, FEW = 0.15, 0.3, 5
"""How much smaller than the stored one a ratio's third quartile may be, since medians of two runs differ by up to 10 %;
of fewer than FEW rounds its median, by more."""

Cases = Mapping[str, Mapping[str, Any]]
"""What a case stated beside its times, by its full name."""


class Verdict(NamedTuple):
    """Of a comparison."""

    worse: list[str]
    """a line for each alternative over which ours has lost"""
    compared: int
    missing: list[str]
    """cases with a ratio in the stored run and none in this"""


def stored_path() -> Path:
    """Where the committed run of this machine's device lies, or would."""
    return RESULTS / machine.slug(machine.device_name()) / "benchmarks.json"


def judge(stored: Cases, now: Cases) -> Verdict:
    """A ratio is what an alternative took over what ours took, of each round; only what exceeds their spread counts."""
    worse, compared, missing = [], 0, []
    for name in sorted(name for name, info in stored.items() if "over_ours" in info):
        if "over_ours" not in now.get(name, {}):
            missing.append(name)
            continue
        compared += 1
        before, after = stored[name]["over_ours"], now[name]["over_ours"]
        is_few = min(before["rounds"], after["rounds"]) < FEW
        margin, best = (WIDE_MARGIN, after["median"]) if is_few else (MARGIN, after["q3"])
        if best < (1 - margin) * before["median"]:
            took = f"takes {after['median']:.2f} times as long as ours"
            worse.append(f"{name}: {took}; {before['median']:.2f} times in the stored run")
    return Verdict(worse, compared, missing)
