"""README's tables, from the stored runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.instrument.ladders import ladders, power
from bench.instrument.saved import Run, cases_of, dtype, heading, kernel_cases
from bench.instrument.table import Case, by_operation, label, markdown_table, ratio

README = Path(__file__).resolve().parents[2] / "README.md"


def tables(runs: Iterable[Run]) -> dict[str, str]:
    """What README.md states, by the name in its marks."""
    found: dict[str, list[str]] = {name: [] for name in ("step", "collector", "operations", "scaling")}
    for run in runs:
        found["step"].append(f"{heading(run)}{_rounds(run, 'step: ')}:\n\n{_step(run)}")
        found["collector"].append(f"{heading(run)}{_rounds(run, 'collect ')}:\n\n{_collector(run)}")
        if any(c.info["form"] == "triton" for c in run.cases):
            found["operations"].append(f"{heading(run)}, {dtype(run)}:\n\n{markdown_table(kernel_cases(run))}")
        found["scaling"].append(f"{heading(run)}, {dtype(run)}:\n\n{_scaling(run)}")
    found["operations"] = found["operations"] or ["Not yet run on a GPU."]
    return {name: "\n\n".join(parts) or "Not measured." for name, parts in found.items()}


def put(text: str, named: Mapping[str, str]) -> str:
    """README's text with these tables between their marks.

    Raises:
        ValueError: where a mark is missing.
    """
    for name, table in named.items():
        begin, end = f"<!-- measured: {name} -->\n", "<!-- end -->"
        if begin not in text or end not in text.split(begin, 1)[1]:
            raise ValueError(f"want {begin.strip()} and {end} in README.md; got none")
        head, rest = text.split(begin, 1)
        text = head + begin + "\n" + table + "\n\n" + end + rest.split(end, 1)[1]
    return text


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
