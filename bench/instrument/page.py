"""bench/results/README.md, the page of the stored runs: what every device took, a GPU's first."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.instrument.ladders import ladders, power
from bench.instrument.saved import RESULTS, Run, cases_of, dtype, heading, kernel_cases, load, stored
from bench.instrument.table import Case, by_operation, label, markdown_table, ratio

PAGE = RESULTS / "README.md"

_HEAD = """# What it takes

Made by `python -m bench.instrument.report --page` from the runs stored beside this page; each folder has its whole
report. A time is a median, with the interquartile range (IQR) as a share of it; "/ ours" is what a form took over what
ours took in the same round, with the quartiles of the rounds in brackets. "Of roof" is the share of what copying and
the fastest large products reach on that device.

The forms of an operation are held to each other first, and one that is wrong or fails gets no time; then all take
turns. On a CPU each form of a training step has a process of its own, as in training. What is not installed, needs a
GPU, or would take too long by what smaller sizes took, is listed as absent in the reports; a throttled or shared device
is called so. `pytest bench/ --benchmark-only --benchmark-compare` holds a run to the stored one of the same device, by
what each alternative took over what ours took and by the share of the roof that ours reached, not by times."""

_STEP = """## A training step

Full size: batch 16 x 64, imagination 1024 x (8 + 16), 18 actions.

Part of what separates us from the released code on a CPU is that ours tells the C library to keep its pages
(`storm_fast/engine/allocator.py`). With that setting given to the released code too, it took 1.58 times as long as ours
in bf16 and 3.13 times in float32 (2 CPU cores, c099b16, each in its process, four rounds), in another run 1.84 and 3.70
times (e36b312, all in one process, three rounds)."""

_COLLECTOR = """## Environment steps

64 x 64 colour, 4 frames a step, sticky 0.25. "Emulation" is what our emulator alone takes, "stock emulation" ALE's own;
Sync and Async are gymnasium's."""

_OPERATIONS = "## Operations of kernels/"

_SCALING = "## As work grows"


def write() -> Path:
    """Write the page of what is stored; returns where."""
    PAGE.write_text(page([(file, load(file)) for file in stored()]))
    return PAGE


def page(runs: Iterable[tuple[Path, Run]]) -> str:
    """The page as Markdown, of runs and the files they come from."""
    runs = sorted(runs, key=lambda one: "cuda" not in one[1].machine)
    steps = [f"{heading(run)}{_rounds(run, 'step: ')}:\n\n{_step(run)}" for _, run in runs if cases_of(run, "step: ")]
    collectors = [
        f"{heading(run)}{_rounds(run, 'collect ')}:\n\n{_collector(run)}"
        for _, run in runs
        if cases_of(run, "collect ")
    ]
    operations = [
        f"{heading(run)}, {dtype(run)}:\n\n{markdown_table(kernel_cases(run))}"
        for _, run in runs
        if any(c.info["form"] == "triton" for c in run.cases)
    ]
    scaling = [f"{heading(run)}, {dtype(run)}:\n\n{_scaling(run)}" for _, run in runs if cases_of(run, "scaling: ")]
    parts = [_HEAD, "\n".join(_reports(runs)), _STEP, *steps, _COLLECTOR, *collectors]
    parts += [_OPERATIONS, *(operations or ["Not yet run on a GPU."]), _SCALING, *scaling]
    parts += ["\n".join(_pictures(runs))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _reports(runs: Iterable[tuple[Path, Run]]) -> Iterator[str]:
    for file, run in runs:
        folder = os.path.relpath(file.parent, RESULTS)
        yield f"- [{run.machine['device']}]({folder}/report.md)" + (", with `--quick`" if run.device["quick"] else "")


def _pictures(runs: Iterable[tuple[Path, Run]]) -> Iterator[str]:
    for file, _ in runs:
        for picture in sorted(file.parent.glob("*.png")):
            yield f"![{picture.stem.replace('-', ' ')}]({os.path.relpath(picture, RESULTS)})"


def _rounds(run: Run, prefix: str) -> str:
    """How many rounds a table's medians are of; a cell of another number says so itself."""
    counts = {c.rounds for c in cases_of(run, prefix) if c.info["ours"]}
    return f", medians of {max(counts)} rounds" if counts else ""


def _over_ours(case: Case | None, ours: Case | None) -> str:
    """Median and quartiles of the rounds' own ratios, and how many they are where not as many as of ours."""
    if case is None or ours is None or "over_ours" not in case.info:
        return ""
    over = case.info["over_ours"]
    few = "" if over["rounds"] == ours.rounds else f", {over['rounds']} rounds"
    return f"{ratio(case)} ({over['q1']:.2f} to {over['q3']:.2f}{few})"


def _spread(case: Case) -> str:
    return f"IQR {case.iqr_s / case.median_s:.0%}"


def _step(run: Run) -> str:
    """A row for each phase: ours in milliseconds, and what each other form takes over it."""
    cases = cases_of(run, "step: ")
    labels = {label(c.info): c.info["ours"] for c in cases}
    ours = next((name for name, is_ours in labels.items() if is_ours), "ours")
    others = [name for name, is_ours in labels.items() if not is_ours]
    rows = [f"| phase | {ours} | of roof | {' | '.join(f'{other} / ours' for other in others)} |"]
    rows.append("|---" * (3 + len(others)) + "|")
    for operation, forms in by_operation(cases).items():
        by_label = {label(c.info): c for c in forms}
        mine = by_label.get(ours)
        roof = f"{mine.info['share_of_roof']:.0%}" if mine and "share_of_roof" in mine.info else ""
        cells = [f"{1e3 * mine.median_s:,.2f} ms ({_spread(mine)})" if mine else "absent", roof]
        cells += [_over_ours(by_label.get(other), mine) or "absent" for other in others]
        rows.append(f"| {operation.removeprefix('step: ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _collector(run: Run) -> str:
    """A row for each game, number of games and of threads."""
    names = ("emulation", "stock emulation", "AtariVectorEnv", "envpool", "Sync", "Async")
    others = [name for name in names if name in {c.info["form"] for c in cases_of(run, "collect ")}]
    rows = [f"| what | ours, steps/s | {' | '.join(f'{other} / ours' for other in others)} |"]
    rows.append("|---" * (2 + len(others)) + "|")
    for operation, forms in by_operation(cases_of(run, "collect ")).items():
        by_form = {c.info["form"]: c for c in forms}
        mine = by_form.get("ours")
        cells = [f"{mine.info['per_s']:,.0f} ({_spread(mine)})" if mine else "absent"]
        cells += [_over_ours(by_form.get(other), mine) for other in others]
        rows.append(f"| {operation.removeprefix('collect ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _scaling(run: Run) -> str:
    rows = ["| what | sizes | time grows as | memory added at the largest |", "|---|---|---|---|"]
    for name, points in ladders(run).items():
        sizes = f"{points[0].size:,} to {points[-1].size:,}"
        rows.append(f"| {name} | {sizes} | {power(points)} | {points[-1].mb:,.0f} MB |")
    return "\n".join(rows)
