"""A report of saved benchmarks: `python -m bench.instrument.report` writes one for each stored run.

Stored runs are bench/results/*/benchmarks.json, and the report lies beside them.

`python -m bench.instrument.report FILE...` reports other runs, each beside its file. With `--page` it also
writes bench/results/README.md, the page of all stored runs; a test holds it to them.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.instrument import page
from bench.instrument.ladders import ladders, plot, power
from bench.instrument.saved import Run, cases_of, dtype, heading, kernel_cases, load, merge, stored
from bench.instrument.table import absences, ceilings, duration, faults, limits, markdown_table


def markdown(run: Run, plots: Mapping[str, str]) -> str:
    """The whole report; `plots` has the picture of each ladder."""
    parts = [f"# Benchmarks: {run.machine['device']}", f"{heading(run)}, training in {dtype(run)}."]
    if run.device["quick"]:
        parts.append("With `--quick`: few rounds and sizes.")
    parts += [f"**Not to be trusted: {trouble}.**" for trouble in run.device["troubles"]]
    told = [*(ceilings(run.device["ceilings"]) if run.device["ceilings"] else ()), *limits(run.device["limits"])]
    parts += [line[0].upper() + line[1:] + "." for line in [*told, *run.device["remarks"]]]
    states = {f"at the {when}": run.device[when] for when in ("start", "end")}
    if run.device["at_work"]:
        states["at work, last"] = run.device["at_work"][-1]
    parts += [f"Device {when}: {_state(state)}." for when, state in states.items() if _state(state)]
    parts.append(
        "Medians and interquartile ranges of rounds in which all forms take turns; of fewer than five rounds their "
        'number. "/ ours" is what a form took over what ours took, the median of each round\'s own ratio. "Of roof" is '
        "the share of what copying and the fastest large products reach here. As work grows one form is measured alone."
    )
    parts += ["## A training step", markdown_table(cases_of(run, "step: "))]
    parts += ["## Environment steps", markdown_table(cases_of(run, "collect "))]
    parts += ["## Operations of kernels/", markdown_table(kernel_cases(run)), "## As work grows", *_ladders(run, plots)]
    without = [f"**{line}**" for line in faults(run.device["wrong"], run.device["failed"])]
    without += absences(run.device["absent"])
    parts += ["## Wrong, failed or absent", "\n".join(f"- {line}" for line in without) or "Nothing."]
    return "\n\n".join(parts) + "\n"


def _state(state: Mapping[str, Any]) -> str:
    """Of a GPU; a CPU's holds only what `troubles` is made from."""
    if "sm_mhz" not in state:
        return ""
    slowed = ", ".join(state["throttled_by"]) or "nothing"
    clocks = f"{state['sm_mhz']} of {state['sm_mhz_most']} MHz, memory {state['memory_mhz']} MHz"
    return f"{clocks}, {state['power_w']} W, {state['temperature_c']} °C, slowed by {slowed}"


def _ladders(run: Run, plots: Mapping[str, str]) -> Iterator[str]:
    rows = ["| what | from | to | time | of the last step up | memory added |", "|---|---|---|---|---|---|"]
    for name, points in ladders(run).items():
        first, last = points[0], points[-1]
        ends = f"{first.size:,}: {duration(first.seconds)} | {last.size:,}: {duration(last.seconds)}"
        memory = f"{first.mb:,.0f} to {last.mb:,.0f} MB"
        rows.append(f"| {name} | {ends} | {power(points)} | {power(points[-2:])} | {memory} |")
    if len(rows) == 2:
        yield "Not measured."
        return
    yield "Time as a power of size, fitted to all sizes and to the last two:"
    yield "\n".join(rows)
    for name, picture in plots.items():
        yield f"![{name}]({picture})"


def main() -> None:
    """Write the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="saved runs (bench/results/*/benchmarks.json)"
    )
    parser.add_argument("--page", action="store_true", help="write bench/results/README.md of all stored runs")
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
    if arguments.page:
        sys.stdout.write(f"{page.write()}\n")


if __name__ == "__main__":
    main()
