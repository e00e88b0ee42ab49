"""A report of saved benchmarks: `python -m bench.report` writes one beside each bench/results/*/benchmarks.json.

`python -m bench.report FILE...` reports other runs, each beside its file. `python -m bench.report --readme` also puts
the tables of bench/results/ into README.md, between its marks; a test holds the two together.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.guard import RESULTS
from bench.table import Case, absences, by_operation, ceilings, duration, further, spread

README = Path(__file__).resolve().parents[1] / "README.md"


class Run(NamedTuple):
    """One saved run."""

    machine: Mapping[str, Any]
    device: Mapping[str, Any]
    """what conftest.py adds: ceilings, states, what is absent or wrong"""
    commit: str
    date: str
    cases: list[Case]


class Point(NamedTuple):
    """A rung of a ladder."""

    size: int
    seconds: float
    mb: float
    per_s: float
    unit: str


def load(path: Path) -> Run:
    """Read what `pytest bench/ --benchmark-only --benchmark-json=FILE` wrote.

    Raises:
        SystemExit: where it is not such a file.
    """
    try:
        saved = json.loads(path.read_text())
        cases = [
            Case(b["group"], b["stats"]["median"], b["stats"]["iqr"], b["stats"]["rounds"], b["extra_info"])
            for b in saved["benchmarks"]
        ]
        commit = saved["commit_info"]
        name = commit["id"][:7] + (" with changes" if commit["dirty"] else "")
        return Run(saved["machine_info"], saved["device"], name, saved["datetime"][:10], cases)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: want a file of `pytest bench/ --benchmark-only --benchmark-json`; got {path}: {error!r}")


def merge(parts: list[Path]) -> dict[str, Any]:
    """One saved run of several, of the same device and commit, that together are a whole.

    Raises:
        SystemExit: where they are not of one device and commit, or one is no saved run.
    """
    runs = [load(part) for part in parts]
    if len({(run.machine["device"], run.commit) for run in runs}) != 1:
        got = ", ".join(
            f"{part}: {run.machine['device']} at {run.commit}" for part, run in zip(parts, runs, strict=True)
        )
        sys.exit(f"error: want parts of one device and commit; got {got}")
    saved = [json.loads(part.read_text()) for part in parts]
    whole: dict[str, Any] = saved[0]
    whole["benchmarks"] = [case for part in saved for case in part["benchmarks"]]
    devices = [part["device"] for part in saved]
    whole["device"] |= {name: {k: v for d in devices for k, v in d[name].items()} for name in ("absent", "wrong")}
    whole["device"] |= {name: [x for d in devices for x in d[name]] for name in ("troubles", "at_work")}
    whole["device"] |= {"end": devices[-1]["end"], "quick": any(d["quick"] for d in devices)}
    return whole


def heading(run: Run) -> str:
    """Device, commit and versions in a line."""
    m = run.machine
    threads = "" if "cuda" in m else f", {m['instructions']}, {m['threads']} threads"
    versions = f"torch {m['torch']}, bf16 unless a form says otherwise, commit {run.commit}, {run.date}"
    return f"{m['device']}{threads}, {versions}"


def markdown(run: Run, plots: Mapping[str, str]) -> str:
    """The whole report; `plots` has the picture of each ladder."""
    parts = [f"# Benchmarks: {run.machine['device']}", heading(run) + "."]
    if run.device["quick"]:
        parts.append("With `--quick`: few rounds and sizes.")
    parts += [f"**Not to be trusted: {trouble}.**" for trouble in run.device["troubles"]]
    if run.device["ceilings"]:
        parts += [line[0].upper() + line[1:] + "." for line in ceilings(run.device["ceilings"])]
    states = {f"at the {when}": run.device[when] for when in ("start", "end")}
    if run.device["at_work"]:
        states["at work, last"] = run.device["at_work"][-1]
    parts += [f"Device {when}: {_state(state)}." for when, state in states.items() if _state(state)]
    parts.append(
        "Medians and interquartile ranges of rounds in which all forms take turns; of fewer than five rounds their "
        'number. "/ ours" is what a form took over what ours took, the median of each round\'s own ratio. "Of roof" is '
        "the share of what copying and the fastest large products reach here. As work grows one form is measured alone."
    )
    parts += ["## A training step", *_table(_of(run, "step: ")), "## Environment steps", *_table(_of(run, "collect "))]
    rest = [c for c in run.cases if not c.operation.startswith(("step: ", "collect ", "scaling: "))]
    parts += ["## Operations of kernels/", *_table(rest), "## As work grows", *_ladders(run, plots)]
    wrong = [f"- **{name}: WRONG**: {why}" for name, why in sorted(run.device["wrong"].items())]
    absent = [f"- {line}" for line in absences(run.device["absent"])]
    parts += ["## Wrong or absent", "\n".join([*wrong, *absent]) or "Nothing."]
    return "\n\n".join(parts) + "\n"


def _of(run: Run, prefix: str) -> list[Case]:
    return [c for c in run.cases if c.operation.startswith(prefix)]


def _state(state: Mapping[str, Any]) -> str:
    """Of a GPU; a CPU's holds only what `troubles` is made from."""
    if "sm_mhz" not in state:
        return ""
    slowed = ", ".join(state["throttled_by"]) or "nothing"
    clocks = f"{state['sm_mhz']} of {state['sm_mhz_most']} MHz, memory {state['memory_mhz']} MHz"
    return f"{clocks}, {state['power_w']} W, {state['temperature_c']} °C, slowed by {slowed}"


def _table(cases: Iterable[Case]) -> Iterator[str]:
    """A Markdown table of operations and their forms."""
    rows = ["| operation | form | median | IQR | / ours | of roof | rate |", "|---|---|---|---|---|---|---|"]
    for operation, forms in by_operation(cases).items():
        for case in sorted(forms, key=lambda c: c.median_s):
            info = case.info
            ratio = "ours" if info["ours"] else _over_ours(case)
            roof = f"{info['share_of_roof']:.1%}" if "share_of_roof" in info else ""
            times = f"{duration(case.median_s)} | {spread(case)}"
            rows.append(f"| {operation} | {info['form']} | {times} | {ratio} | {roof} | {_rate(case)} |")
    yield "\n".join(rows) if len(rows) > 2 else "Not measured."


def _over_ours(case: Case | None) -> str:
    """Empty where it was not measured, or ours was not."""
    return f"{case.info['over_ours']['median']:.2f}" if case and "over_ours" in case.info else ""


def _rate(case: Case) -> str:
    info, rates = case.info, []
    if "unit" in info:
        rates.append(f"{info['per_s']:,.0f} {info['unit']}/s")
    if info.get("bytes"):
        rates.append(f"{info['bytes'] / case.median_s / 1e9:,.1f} GB/s")
    if info.get("flops"):
        rates.append(f"{info['flops'] / case.median_s / 1e12:.3f} TFLOP/s")
    return ", ".join([*rates, *further(info)])


def ladders(run: Run) -> dict[str, list[Point]]:
    """What was measured as work grew, by `<what> over <axis>`, smallest first."""
    found: dict[str, list[Point]] = {}
    for case in _of(run, "scaling: "):
        i = case.info
        point = Point(i["size"], case.median_s, i["peak_mb"], i.get("per_s", math.nan), i.get("unit", ""))
        found.setdefault(i["ladder"].removeprefix("scaling: "), []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def exponent(points: list[Point]) -> float:
    """The slope of log seconds over log size, by least squares: 1 is time in proportion. NaN for a single point."""
    if len(points) < 2:
        return math.nan
    x, y = (np.log([getattr(p, name) for p in points]) for name in ("size", "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def _ladders(run: Run, plots: Mapping[str, str]) -> Iterator[str]:
    rows = ["| what | from | to | time | of the last step up | memory added |", "|---|---|---|---|---|---|"]
    for name, points in ladders(run).items():
        first, last = points[0], points[-1]
        ends = f"{first.size:,}: {duration(first.seconds)} | {last.size:,}: {duration(last.seconds)}"
        memory = f"{first.mb:,.0f} to {last.mb:,.0f} MB"
        rows.append(f"| {name} | {ends} | {_power(points)} | {_power(points[-2:])} | {memory} |")
    if len(rows) == 2:
        yield "Not measured."
        return
    yield "Time as a power of size, fitted to all sizes and to the last two:"
    yield "\n".join(rows)
    for name, picture in plots.items():
        yield f"![{name}]({picture})"


def _power(points: list[Point]) -> str:
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
        left.set(xlabel=name.rsplit(" over ", 1)[1], ylabel="ms a call", title=_power(points))
        right.semilogx(sizes, [p.mb for p in points], "o-")
        right.set(xlabel=name.rsplit(" over ", 1)[1], ylabel="MB added", ylim=(0, None))
        figure.suptitle(f"{name}\n{run.machine['device']}", fontsize=9)
        figure.savefig(folder / file, dpi=100)
        pyplot.close(figure)
    return pictures


def readme_tables(runs: Iterable[Run]) -> dict[str, str]:
    """What README.md states, by the name in its marks."""
    found: dict[str, list[str]] = {name: [] for name in ("step", "collector", "operations", "scaling")}
    for run in runs:
        found["step"].append(heading(run) + ":\n\n" + _step_summary(run))
        found["collector"].append(heading(run) + ":\n\n" + _collector_summary(run))
        if any(c.info["form"] == "triton" for c in run.cases):
            rest = [c for c in run.cases if not c.operation.startswith(("step: ", "collect ", "scaling: "))]
            found["operations"].append(heading(run) + ":\n\n" + "\n".join(_table(rest)))
        found["scaling"].append(heading(run) + ":\n\n" + _scaling_summary(run))
    found["operations"] = found["operations"] or ["Not yet run on a GPU."]
    return {name: "\n\n".join(tables) or "Not measured." for name, tables in found.items()}


def _scaling_summary(run: Run) -> str:
    rows = ["| what | sizes | time grows as | memory added at the largest |", "|---|---|---|---|"]
    for name, points in ladders(run).items():
        sizes = f"{points[0].size:,} to {points[-1].size:,}"
        rows.append(f"| {name} | {sizes} | {_power(points)} | {points[-1].mb:,.0f} MB |")
    return "\n".join(rows)


def _step_summary(run: Run) -> str:
    """A row for each phase: ours in milliseconds, and what each other form takes over it."""
    phases = by_operation(_of(run, "step: "))
    ours = next((c.info["form"] for c in run.cases if c.operation.startswith("step: ") and c.info["ours"]), "ours")
    others = sorted({c.info["form"] for c in _of(run, "step: ")} - {ours})
    rows = [f"| phase | {ours} | of roof | {' | '.join(f'{other} / ours' for other in others)} |"]
    rows.append("|---" * (3 + len(others)) + "|")
    for operation, forms in phases.items():
        by_form = {c.info["form"]: c for c in forms}
        mine = by_form.get(ours)
        roof = f"{mine.info['share_of_roof']:.0%}" if mine and "share_of_roof" in mine.info else ""
        cells = [f"{1e3 * mine.median_s:,.2f} ms" if mine else "absent", roof]
        cells += [_over_ours(by_form.get(other)) or "absent" for other in others]
        rows.append(f"| {operation.removeprefix('step: ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _collector_summary(run: Run) -> str:
    """A row for each game, number of games and of threads."""
    names = ("emulation", "stock emulation", "AtariVectorEnv", "envpool", "Sync", "Async")
    others = [name for name in names if name in {c.info["form"] for c in _of(run, "collect ")}]
    rows = [f"| what | ours, steps/s | {' | '.join(f'{other} / ours' for other in others)} |"]
    rows.append("|---" * (2 + len(others)) + "|")
    for operation, forms in by_operation(_of(run, "collect ")).items():
        by_form = {c.info["form"]: c for c in forms}
        mine = by_form.get("ours")
        cells = [f"{mine.info['per_s']:,.0f}" if mine else "absent"]
        cells += [_over_ours(by_form.get(other)) for other in others]
        rows.append(f"| {operation.removeprefix('collect ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def put(text: str, tables: Mapping[str, str]) -> str:
    """README's text with these tables between their marks.

    Raises:
        ValueError: where a mark is missing.
    """
    for name, table in tables.items():
        begin, end = f"<!-- measured: {name} -->\n", "<!-- end -->"
        if begin not in text or end not in text.split(begin, 1)[1]:
            raise ValueError(f"want {begin.strip()} and {end} in README.md; got none")
        head, rest = text.split(begin, 1)
        text = head + begin + "\n" + table + "\n\n" + end + rest.split(end, 1)[1]
    return text


def stored() -> list[Path]:
    """Every committed run."""
    return sorted(RESULTS.glob("*/benchmarks.json"))


def main() -> None:
    """Write the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="saved runs (bench/results/*/benchmarks.json)"
    )
    parser.add_argument("--readme", action="store_true", help="put the tables of bench/results/ into README.md")
    parser.add_argument("--merge", type=Path, metavar="TO", help="first make one run TO of all FILEs, and report that")
    arguments = parser.parse_args()
    files = arguments.files or stored()
    if arguments.merge:
        arguments.merge.write_text(json.dumps(merge(files), indent=1))
        files = [arguments.merge]
    if not files:
        sys.exit(
            "error: want saved runs; bench/results/ holds none: pytest bench/ --benchmark-only --benchmark-json=FILE"
        )
    for file in files:
        run = load(file)
        report = file.with_name("report.md")
        report.write_text(markdown(run, plot(run, file.parent)))
        sys.stdout.write(f"{report}\n")
    if arguments.readme:
        README.write_text(put(README.read_text(), readme_tables(map(load, stored()))))


if __name__ == "__main__":
    main()
