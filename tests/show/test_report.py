"""The report of runs: what it must say, and what it must refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from storm_fast.report import main
from storm_fast.runs.run import Run
from storm_fast.show import report
from storm_fast.show.report import page, read
from tests.small import small_config


def finished(path: Path, game: str, score: float | None = None) -> Path:
    """A run of two logged rows and three episodes, evaluated where there is a score."""
    run = Run.create(path, small_config(game))
    rows: list[dict[str, Any]] = [
        {"step": 50, "model/total": 2.5, "time/steps_per_s": 100.0},
        {"step": 100, "model/total": float("nan"), "time/steps_per_s": 25.0},
    ]
    run.append_rows("metrics.jsonl", rows)
    run.append_rows("episodes.jsonl", [{"step": 10 * i, "env": 0, "return": float(i)} for i in (1, 2, 3)])
    if score is not None:
        evaluation = {"score": score, "step": 100, "returns_per_env": [[score]], "human_normalised": score / 10}
        (path / "eval" / "100.json").write_text(json.dumps(evaluation))
    return path


def test_hours_are_those_of_the_logged_rates(tmp_path: Path) -> None:
    # 50 steps at 100 a second and 50 at 25: 2.5 s.
    assert read(finished(tmp_path / "a", "Pong")).hours == pytest.approx(2.5 / 3600)
    assert read(Run.create(tmp_path / "b", small_config()).path).hours is None


def test_the_score_of_the_step_that_counts_is_the_final_one(tmp_path: Path) -> None:
    record = read(finished(tmp_path / "a", "Pong", 3.0))
    scores = {step: {"score": float(step)} for step in (10, 90, 110, 200)}
    for scored, wanted in ((None, 200), (90, 90), (100, 110), (300, 200)):
        config = record.config.__class__(**{**vars(record.config), "scored_step": scored})
        assert record._replace(config=config, scores=scores).final == {"score": float(wanted)}
    assert record._replace(scores={}).final is None


def test_the_page_shows_every_run_and_its_scores(tmp_path: Path) -> None:
    records = [read(finished(tmp_path / "first<run>", "Pong", 12.5)), read(finished(tmp_path / "second", "Pong"))]
    text = page(records)
    assert text.count("<svg") == 2  # returns, metrics
    for wanted in ("first&lt;run&gt;", "second", "12.5", "not evaluated", "model/total", "STORM as published"):
        assert wanted in text
    assert "first<run>" not in text
    assert "Human-normalised score over" not in text  # one game
    assert text == page(records)


def test_several_games_have_a_mean_and_a_median_of_their_seeds_means(tmp_path: Path) -> None:
    runs = {"a": ("Pong", 1.0), "b": ("Pong", 3.0), "c": ("Boxing", 5.0), "d": ("Krull", 30.0)}
    text = page([read(finished(tmp_path / name, *what)) for name, what in runs.items()])
    # Normalised, a tenth of the score: Pong 0.2, Boxing 0.5, Krull 3.
    assert "over 3 games" in text
    assert "mean <b>1.233</b>, median <b>0.500</b>" in text
    unscored = page([read(tmp_path / "a"), read(finished(tmp_path / "e", "Qbert"))])
    assert "No mean over games: e has no human-normalised score" in unscored


def test_what_differs_from_the_preset_is_shown(tmp_path: Path) -> None:
    record = read(finished(tmp_path / "a", "Pong"))
    details = report._details(record)
    assert details.index("<td>game</td><td>Pong</td>") < details.index("everything")


def test_the_command_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "all.html"
    assert main([str(finished(tmp_path / "a", "Pong", 1.0)), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert f"wrote {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "want at least one run folder; got none"),
        (["nowhere"], "want a run folder, with config.json and ckpt/; nowhere is none"),
        (["nowhere", "--out", "no/such/report.html"], "want --out in a folder that exists; got no/such/report.html"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert wanted in capsys.readouterr().err
