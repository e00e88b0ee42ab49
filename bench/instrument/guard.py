"""Holds a run to a stored one of the same device: by ratios, since a time of another day is of another machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.instrument import machine

RESULTS = Path(__file__).parents[1] / "results"
MARGIN, WIDE_MARGIN, FEW = 0.15, 0.3, 5
"""How much smaller than the stored one a ratio's third quartile may be, since medians of two runs differ by up to 10 %;
of fewer than FEW rounds its median, by more."""
ROOF_MARGIN = 0.45
"""The same of a share of the roof in its best quarter of rounds. A time drifts by up to a quarter between runs of one
machine, and so does the ceiling that it is held to, which is of another minute: 0.75 x 0.75 is 0.56."""

Cases = Mapping[str, Mapping[str, Any]]
"""What a case stated beside its times, by its full name."""


class Verdict(NamedTuple):
    """Of a comparison."""

    worse: list[str]
    """a line for each alternative over which ours has lost, and each share of the roof that it has"""
    compared: int
    missing: list[str]
    """cases with such a figure in the stored run and none in this"""


def stored_path() -> Path:
    """Where the committed run of this machine's device lies, or would."""
    return RESULTS / machine.slug(machine.device_name()) / "benchmarks.json"


def judge(stored: Cases, now: Cases) -> Verdict:
    """Hold what an alternative took over what ours took, and what share of the roof ours reached.

    The first sees what has become slower in ours alone, the second also what all forms share. Only what exceeds the
    spread of the rounds counts.
    """
    worse, compared, missing = [], 0, []
    for name, before in sorted(stored.items()):
        for key, is_worse in (("over_ours", _ratio_fault), ("share_of_roof", _share_fault)):
            if key not in before or (key == "share_of_roof" and not before["ours"]):
                continue
            after = now.get(name, {})
            if key not in after:
                missing.append(name)
                continue
            compared += 1
            fault = is_worse(before, after)
            if fault is not None:
                worse.append(f"{name}: {fault}")
    return Verdict(worse, compared, missing)


def _ratio_fault(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    before, after = stored["over_ours"], now["over_ours"]
    is_few = min(before["rounds"], after["rounds"]) < FEW
    margin, best = (WIDE_MARGIN, after["median"]) if is_few else (MARGIN, after["q3"])
    if best >= (1 - margin) * before["median"]:
        return None
    return f"takes {after['median']:.2f} times as long as ours; {before['median']:.2f} times in the stored run"


def _share_fault(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    if now["share_best"] >= (1 - ROOF_MARGIN) * stored["share_of_roof"]:
        return None
    return f"ours reaches {now['share_of_roof']:.1%} of the roof; {stored['share_of_roof']:.1%} in the stored run"
