"""Holds a run to a stored one of the same device: by ratios, since a time of another day is of another machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import machine

RESULTS = Path(__file__).parent / "results"
MARGIN = 0.15
"""How much smaller than the stored one a ratio's third quartile may be; medians of two runs differ by up to 10 %"""

Cases = Mapping[str, Mapping[str, Any]]
"""What a case stated beside its times, by its full name."""


def stored_path() -> Path:
    """Where the committed run of this machine's device lies, or would."""
    return RESULTS / machine.slug(machine.device_name()) / "benchmarks.json"


def regressions(stored: Cases, now: Cases) -> list[str]:
    """The alternatives over which ours has lost, a line each.

    A ratio is what an alternative took over what ours took, of each round; only its share beyond the run's own spread
    counts: the third quartile now against the stored median.
    """
    found = []
    for name in sorted(stored.keys() & now.keys()):
        if "over_ours" not in stored[name] or "over_ours" not in now[name]:
            continue
        before, after = stored[name]["over_ours"]["median"], now[name]["over_ours"]
        if after["q3"] < (1 - MARGIN) * before:
            found.append(
                f"{name}: takes {after['median']:.2f} times as long as ours; {before:.2f} times in the stored run"
            )
    return found


def compared(stored: Cases, now: Cases) -> int:
    """How many ratios the two have in common."""
    return sum("over_ours" in stored[name] and "over_ours" in now[name] for name in stored.keys() & now.keys())
