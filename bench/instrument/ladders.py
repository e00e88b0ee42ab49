"""What happened as work grew: the rungs of each ladder, the power that time grows with, and pictures of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.instrument.saved import Run, cases_of


class Point(NamedTuple):
    """A rung of a ladder."""

    size: int
    seconds: float
    mb: float
    per_s: float
    unit: str


def ladders(run: Run) -> dict[str, list[Point]]:
    """What was measured as work grew, by `<what> over <axis>`, smallest first."""
    found: dict[str, list[Point]] = {}
    for case in cases_of(run, "scaling: "):
        i = case.info
        point = Point(i["size"], case.median_s, i["peak_mb"], i.get("per_s", math.nan), i.get("unit", ""))
        found.setdefault(i["ladder"].removeprefix("scaling: "), []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def exponent(points: list[Point]) -> float:
    """The slope of log seconds over log size, by least squares: 1 is time in proportion. NaN for a single point."""
    if len(points) < 2:
        return math.nan
    return slope([p.size for p in points], [p.seconds for p in points])


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Of log seconds over log size, of two points or more."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def power(points: list[Point]) -> str:
    """As tables say it; empty for a single point."""
    return f"size^{exponent(points):.2f}" if len(points) > 1 else ""


def picture_names(run: Run) -> dict[str, str]:
    """The file of each ladder that has more than one rung."""
    names = (name for name, points in ladders(run).items() if len(points) > 1)
    return {name: "".join(c if c.isalnum() else "-" for c in name.lower()) + ".png" for name in names}


def plot(run: Run, folder: Path) -> dict[str, str]:
    """A picture of each ladder: time and memory over size. Returns `picture_names`."""
    import matplotlib  # here: an extra, which the tables do without

    matplotlib.use("agg")
    from matplotlib import pyplot

    pictures = picture_names(run)
    for name, file in pictures.items():
        points = ladders(run)[name]
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
        sizes = [p.size for p in points]
        left.loglog(sizes, [1e3 * p.seconds for p in points], "o-")
        left.set(xlabel=name.rsplit(" over ", 1)[1], ylabel="ms a call", title=power(points))
        right.semilogx(sizes, [p.mb for p in points], "o-")
        right.set(xlabel=name.rsplit(" over ", 1)[1], ylabel="MB added", ylim=(0, None))
        figure.suptitle(f"{name}\n{run.machine['device']}", fontsize=9)
        figure.savefig(folder / file, dpi=100)
        pyplot.close(figure)
    return pictures
