"""The lines that a terminal and a report share: an operation's forms side by side."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One form of one operation, as measured."""

    operation: str
    median_s: float
    iqr_s: float
    rounds: int
    info: Mapping[str, Any]


def lines(cases: Iterable[Case]) -> Iterator[str]:
    """An aligned table."""
    yield f"{'':44s}{'median':>12s}{'IQR':>11s}{'/ ours':>8s}{'of roof':>9s}{'moved':>13s}{'computed':>15s}"
    for operation, forms in by_operation(cases).items():
        yield operation
        for case in sorted(forms, key=lambda c: c.median_s):
            yield f"  {label(case.info):42s}" + "".join(_cells(case))


def faults(wrong: Mapping[str, str], failed: Mapping[str, str]) -> Iterator[str]:
    """What has no time, by `operation: form`: what computes something else, and what could not run."""
    for word, found in (("WRONG", wrong), ("FAILED", failed)):
        for name, why in sorted(found.items()):
            yield f"{name}: {word}: {why}"


def markdown_table(cases: Iterable[Case]) -> str:
    """The same for a report."""
    rows = ["| operation | form | median | IQR | / ours | of roof | rate |", "|---|---|---|---|---|---|---|"]
    for operation, forms in by_operation(cases).items():
        for case in sorted(forms, key=lambda c: c.median_s):
            info = case.info
            counted = [f"{info['per_s']:,.0f} {info['unit']}/s"] if "unit" in info else []
            cells = [operation, label(info), duration(case.median_s), spread(case)]
            cells += ["ours" if info["ours"] else ratio(case)]
            cells += [f"{info['share_of_roof']:.1%}" if "share_of_roof" in info else ""]
            rows.append(f"| {' | '.join(cells)} | {', '.join([*counted, *_rates(case), *further(info)])} |")
    return "\n".join(rows) if len(rows) > 2 else "Not measured."


def ratio(case: Case) -> str:
    """What a form took over what ours took; empty where ours was not measured."""
    return f"{case.info['over_ours']['median']:.2f}" if "over_ours" in case.info else ""


def by_operation(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """The forms of each operation, in the order in which they were measured."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.operation, []).append(case)
    return found


def _cells(case: Case) -> Iterator[str]:
    info, s = case.info, case.median_s
    yield f"{duration(s):>12s}{spread(case):>11s}"
    yield f"{info['over_ours']['median']:7.2f}x" if "over_ours" in info else f"{'ours' if info['ours'] else '':>8s}"
    if "share_of_roof" in info:
        moved, computed = (rate(info[key] / s, unit) if info[key] else "" for key, unit in _UNITS.items())
        yield f"{info['share_of_roof']:9.1%}{moved:>13s}{computed:>15s}"
    if "unit" in info:
        yield f"  {info['per_s']:,.0f} {info['unit']}/s"
    for text in further(info):
        yield f"  {text}"


_UNITS = {"bytes": "B/s", "flops": "FLOP/s"}


def _rates(case: Case) -> Iterator[str]:
    return (rate(case.info[key] / case.median_s, unit) for key, unit in _UNITS.items() if case.info.get(key))


def rate(per_s: float, unit: str) -> str:
    """With the prefix that leaves one to three digits before the point."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if per_s >= size:
            return f"{per_s / size:.3g} {prefix}{unit}" if per_s < 1e15 else f"{per_s / size:,.0f} {prefix}{unit}"
    return f"{per_s:.3g} {unit}"


def label(info: Mapping[str, Any]) -> str:
    """What a form is called: its name, or what that stands for here."""
    return str(info.get("label", info["form"]))


def spread(case: Case) -> str:
    """The interquartile range, of rounds that are enough for one."""
    return duration(case.iqr_s) if case.rounds >= 5 else f"of {case.rounds}"


def further(info: Mapping[str, Any]) -> Iterator[str]:
    """What some cases state besides."""
    return (text.format(info[name]) for name, text in _FURTHER.items() if name in info)


_FURTHER = {
    "peak_mb": "adds {:,.0f} MB",
    "host_ms": "host {:.2f} ms",
    "idle_share": "idle {:.0%}",
    "joules": "{:.2f} J",
    "phases_apart_ms": "phases apart {:.2f} ms",
}


def absences(absent: Mapping[str, str]) -> Iterator[str]:
    """What was not measured, by form and reason; `absent` has them by `operation: form`."""
    operations: dict[tuple[str, str], list[str]] = {}
    for name, why in absent.items():
        operation, form = name.rsplit(": ", 1)
        operations.setdefault((form, why), []).append(operation)
    for (form, why), names in sorted(operations.items()):
        yield f"absent: {form} ({why}): {names[0] if len(names) == 1 else f'{len(names)} operations'}"


def ceilings(measured: Mapping[str, float]) -> Iterator[str]:
    """What the device reached."""
    yield (
        f"roof: {measured['bytes_per_s'] / 1e9:,.1f} GB/s copied; {measured['bf16_flops_per_s'] / 1e12:,.3f} TFLOP/s "
        f"in bf16, {measured['full_flops_per_s'] / 1e12:,.3f} with float32 tensors (tf32 on a GPU); a small operation "
        f"costs the host {duration(measured['launch_s'])}, in a graph {duration(measured['node_s'])}"
    )


def limits(told: Mapping[str, Any]) -> Iterator[str]:
    """What NVML says of a GPU."""
    texts = {
        "sm_mhz": "{} MHz",
        "memory_mhz": "memory {} MHz",
        "power_w": "{:.0f} W",
    }
    known = [rate(told["bytes_per_s"], "B/s")] if told.get("bytes_per_s") else []
    known += [text.format(told[name]) for name, text in texts.items() if told.get(name) is not None]
    if known:
        yield "by NVML at most: " + ", ".join(known)


def duration(seconds: float) -> str:
    """With a unit that leaves one to three digits before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds / 1e-9:.0f} ns"
