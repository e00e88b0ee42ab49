"""A report on one or several runs: one HTML page that needs nothing beside it.

Scores beside the published ones, learning curves, every logged metric, configuration and environment. Runs of several
games and seeds are put together as the papers do: the mean over seeds of each game, then mean and median over games of
the human-normalised score.
"""

import html
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from storm_fast.config import Config, flat, preset
from storm_fast.errors import InputError
from storm_fast.runs.run import Run
from storm_fast.runs.scores import published

SMOOTHED = 10
"""episodes whose mean the learning curve shows"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; }
td { text-align: right; font-variant-numeric: tabular-nums; } td:first-child, th { text-align: left; }
svg { max-width: 100%; height: auto; } summary { cursor: pointer; } .note { color: #666; }
"""


class Record(NamedTuple):
    """What a run left behind."""

    name: str
    config: Config
    environment: dict[str, Any]
    metrics: list[dict[str, float | None]]
    episodes: list[dict[str, Any]]
    scores: dict[int, dict[str, Any]]
    """by step, as `evaluate` wrote them"""

    @property
    def hours(self) -> float | None:
        """Of training, from the rate that was logged; None where it was not."""
        before, hours = 0.0, 0.0
        for row in self.metrics:
            step, rate = row["step"], row.get("time/steps_per_s")
            if not rate or step is None:
                return None
            hours += (step - before) / rate / 3600
            before = step
        return hours or None

    @property
    def final(self) -> dict[str, Any] | None:
        """The score of the step that is to be scored, or else of the last that was evaluated."""
        if not self.scores:
            return None
        scored = self.config.scored_step
        beyond = [step for step in sorted(self.scores) if scored is not None and step >= scored]
        return self.scores[beyond[0] if beyond else max(self.scores)]


def read(path: Path) -> Record:
    """All of a run that a report shows.

    Raises:
        InputError: where the folder is no run.
    """
    run = Run.open(path)
    environment = json.loads((path / "env.json").read_text()) if (path / "env.json").is_file() else {}
    scores = {int(file.stem): json.loads(file.read_text()) for file in (path / "eval").glob("*.json")}
    return Record(
        path.resolve().name,
        run.config,
        environment,
        _rows(path / "metrics.jsonl"),
        _rows(path / "episodes.jsonl"),
        scores,
    )


def write(runs: Iterable[Path], out: Path) -> None:
    """Write the report on `runs` to `out`.

    Raises:
        InputError: where a folder is no run, where the folder of `out` does not exist, or without matplotlib.
    """
    if not out.parent.is_dir():
        raise InputError(f"want --out in a folder that exists; got {out}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError('want matplotlib for the curves; pip install "storm-fast[report]"') from error
    out.write_text(page([read(path) for path in runs]))


def page(records: list[Record]) -> str:
    """The report as HTML."""
    games = sorted({record.config.env_name for record in records})
    metrics = sorted({name for record in records for row in record.metrics for name in row} - {"step"})
    parts = [
        f"<h1>STORM on {_text(', '.join(games))}</h1>",
        _overview(records),
        _together(records) if len(games) > 1 else "",
        "<h2>Learning</h2>",
        *(_learning(game, [record for record in records if record.config.env_name == game]) for game in games),
        "<h2>Metrics</h2>" if metrics else "",
        _curves(records, metrics) if metrics else "",
        "<h2>Configuration and environment</h2>",
        *map(_details, records),
    ]
    title = _text(f"STORM on {', '.join(games)}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


def _overview(records: list[Record]) -> str:
    """A row for each run."""
    rows = []
    for record in records:
        final, game = record.final or {}, record.config.env_name
        theirs = published()["methods"]["STORM"].get(record.config.atari_game)
        seeds = f"{statistics.mean(theirs):,.1f} ({', '.join(f'{x:,.0f}' for x in theirs)})" if theirs else ""
        gpus = record.environment.get("gpus") or [f"{record.environment.get('cpus', '?')} CPU cores"]
        rows.append(
            [
                record.name,
                game,
                str(record.config.seed),
                record.config.preset,
                f"{record.metrics[-1]['step']:,.0f}" if record.metrics else "0",
                _number(record.hours, ".2f"),
                _number(final.get("score"), ",.1f"),
                f"{final['step']:,}" if final else "not evaluated",
                str(sum(map(len, final.get("returns_per_env", [])))) if final else "",
                _number(final.get("human_normalised"), ".3f"),
                seeds,
                ", ".join(gpus),
                (record.environment.get("commit") or "unknown")[:7],
            ]
        )
    head = ["run", "game", "seed", "preset", "steps", "hours", "score", "at step", "episodes", "human-normalised"]
    return _table([*head, "STORM as published, mean (seeds)", "device", "commit"], rows)


def _together(records: list[Record]) -> str:
    """Over games, where every one has been evaluated."""
    normalised: dict[str, list[float]] = defaultdict(list)
    for record in records:
        final = record.final
        if final is None or final.get("human_normalised") is None:
            return f'<p class="note">No mean over games: {_text(record.name)} has no human-normalised score.</p>'
        normalised[record.config.env_name].append(final["human_normalised"])
    games = [statistics.mean(seeds) for seeds in normalised.values()]
    return (
        f"<p>Human-normalised score over {len(games)} games, each the mean of its seeds: mean "
        f"<b>{statistics.mean(games):.3f}</b>, median <b>{statistics.median(games):.3f}</b>.</p>"
    )


def _learning(game: str, records: list[Record]) -> str:
    """Returns of a game's training episodes and evaluations."""
    figure, axes = _figure(1, 1)
    axis = axes[0]
    for i, record in enumerate(records):
        returns = [episode["return"] for episode in record.episodes]
        means = [statistics.mean(returns[max(0, end - SMOOTHED) : end]) for end in range(1, len(returns) + 1)]
        axis.plot([episode["step"] for episode in record.episodes], means, color=f"C{i}", label=record.name)
        steps = sorted(record.scores)
        axis.plot(steps, [record.scores[step]["score"] for step in steps], "o", color=f"C{i}")
    scores = published()
    known = records[0].config.atari_game
    lines = {"random": scores["random"].get(known), "human": scores["human"].get(known)}
    lines["STORM as published"] = statistics.mean(scores["methods"]["STORM"].get(known) or [float("nan")])
    for style, (name, value) in zip(("k:", "k--", "k-."), lines.items(), strict=True):
        if value is not None and value == value:
            axis.axhline(value, color=style[0], linestyle=style[1:], linewidth=0.8, label=f"{name} {value:,.1f}")
    axis.set(title=game, xlabel="steps", ylabel=f"return, mean of {SMOOTHED} episodes; dots: evaluations")
    axis.legend(fontsize=8)
    return _svg(figure)


def _curves(records: list[Record], names: list[str]) -> str:
    """A small picture of every metric, all runs in each."""
    columns = 3
    figure, axes = _figure(-(-len(names) // columns), columns)
    for axis, name in zip(axes, names, strict=False):
        for i, record in enumerate(records):
            points = [(row["step"], row[name]) for row in record.metrics if row.get(name) is not None]
            axis.plot([x for x, _ in points], [y for _, y in points], color=f"C{i}", linewidth=0.9)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    return _svg(figure)


def _details(record: Record) -> str:
    """What a run was: how its configuration differs from its preset, all of it, and where it ran."""
    config = flat(record.config)
    usual = flat(preset(record.config.preset))
    changed = [[name, str(config[name]), str(usual[name])] for name in config if config[name] != usual.get(name)]
    environment = {name: value for name, value in record.environment.items() if name != "dirty_diff"}
    environment["uncommitted changes"] = "yes" if record.environment.get("dirty_diff") else "no"
    return (
        f"<h3>{_text(record.name)}</h3><p>Differs from preset {_text(record.config.preset)} in</p>"
        + _table(["field", "here", "preset"], changed)
        + "<details><summary>everything</summary>"
        + _table(["field", "value"], [[name, str(value)] for name, value in (config | environment).items()])
        + "</details>"
    )


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{cells}</tr>\n{body}</table>"


def _figure(rows: int, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # here, since training does without it

    figure = Figure(figsize=(11, 4 if rows == 1 else 2.1 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _svg(figure: Any) -> str:
    """The picture as text of the page; no date, so that a report is the same whenever it is made."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "storm_fast", "path.simplify_threshold": 1.0}):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _text(value: str) -> str:
    return html.escape(value)
