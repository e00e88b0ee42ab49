"""A pilot: what it runs and in which order, what it refuses, and the differences it tells."""

import json
import math
from pathlib import Path

import pytest

from bench import pilot
from bench.pilot import difference, main
from storm_fast import sweep
from storm_fast.runs.run import Run
from tests.small import small_config

SCORES = {("plain", 1): 10.0, ("plain", 2): 12.0, ("plain", 3): 11.0}
SCORES |= {("fast", 1): 13.0, ("fast", 2): 13.0, ("fast", 3): 15.0}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, tuple[str, ...]]]:
    """Every training asked for, in order; each leaves what one would, at the speed of 2 steps a second."""
    done: list[tuple[str, int, tuple[str, ...]]] = []

    def stands_in(command: sweep.Command) -> list[sweep.Failure]:
        (game,), (seed,), name = command.games, command.seeds, command.out.name
        done.append((name, seed, command.trainer))
        path = command.out / f"{game}-s{seed}"
        if (name, seed) not in SCORES:
            return [sweep.Failure(path, path.with_suffix(".log"), 7)]
        if not path.exists():
            run = Run.create(path, small_config(game))
            run.append_rows("metrics.jsonl", [{"step": step, "time/steps_per_s": 2.0} for step in (120, 240)])
            (path / "eval" / "240.json").write_text(json.dumps({"score": SCORES[name, seed]}))
        return []

    monkeypatch.setattr(pilot.sweep, "sweep", stands_in)
    return done


def words(out: Path, *variants: str, **changes: str) -> list[str]:
    options = {"game": "Boxing", "out": str(out), "steps": "2000"} | changes
    return [*variants, *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_all_variants_train_with_one_seed_before_the_next(
    trained: list[tuple[str, int, tuple[str, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "p", "plain=", "fast=--model-lr 3e-3 --gamma 0.9")) == 0
    assert [(name, seed) for name, seed, _ in trained] == [
        (name, seed) for seed in (1, 2, 3) for name in ("plain", "fast")
    ]
    common = ("--preset", "tiny", "--steps", "2000")
    assert trained[1][2] == (*common, "--model-lr", "3e-3", "--gamma", "0.9")
    lines = capsys.readouterr().out.splitlines()
    # Differences 3, 1, 4: mean 8/3, deviation 1.5275, and Student's t of 2 degrees of freedom is 4.3027.
    assert "| plain | 10.0 12.0 11.0 | 11.0 | 0.91 |  | 2.0 |" in lines
    assert "| fast | 13.0 13.0 15.0 | 13.7 | 1.13 | +2.7 (-1.1 to +6.5) | 2.0 |" in lines
    assert (tmp_path / "p" / "pilot.md").read_text().splitlines()[-1] == lines[-1]


def test_a_run_that_fails_is_told_and_leaves_the_others(
    trained: list[tuple[str, int, tuple[str, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "p", "plain=", "broken=--gamma 0.5")) == 1
    out = capsys.readouterr().out
    assert "broken, seed 2: stopped with code 7" in out
    assert "| broken | failed failed failed | nan | nan | +nan |  |" in out
    assert len(trained) == 6


def test_one_seed_gives_a_difference_without_an_interval() -> None:
    assert difference({1: 3.0}, {1: 1.0, 2: 5.0})[:1] == (2.0,)
    assert math.isnan(difference({1: 3.0}, {1: 1.0}).low)
    assert math.isnan(difference({1: 3.0}, {2: 1.0}).mean)
    apart = difference({1: 3.0, 2: 5.0}, {1: 1.0, 2: 5.0})
    assert apart.mean == 1.0
    assert apart.high == pytest.approx(1 + 12.7062, abs=1e-3)  # the t of one degree of freedom, its standard error 1


@pytest.mark.parametrize(
    ("variants", "changes", "said"),
    [
        (["plain"], {}, "want variants NAME=WORDS, each name once and fit for a folder; got 'plain'"),
        (["a=", "a="], {}, "each name once"),
        (["a/b="], {}, "fit for a folder"),
        (["a=--seed 4"], {}, "want no --preset"),
        (["a="], {"episodes": "7"}, "--episodes that 5 divides"),
        (["a="], {"game": "Pongg"}, "want a game of ALE"),
        (["a="], {"preset": "tinny"}, "want a preset of"),
        ([], {}, "want at least one variant"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_runs(
    trained: list[tuple[str, int, tuple[str, ...]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variants: list[str],
    changes: dict[str, str],
    said: str,
) -> None:
    assert main(words(tmp_path / "p", *variants, **changes)) == 2
    assert said in capsys.readouterr().err
    assert not trained
    assert not (tmp_path / "p").exists()


def test_words_that_the_trainer_does_not_take_are_refused_before_anything_runs(
    trained: list[tuple[str, int, tuple[str, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words(tmp_path / "p", "plain=", "a=--gamma 7"))
    assert "want --gamma in [0, 1]; got 7.0" in capsys.readouterr().err
    assert not trained


def test_other_words_do_not_pass_for_the_old_runs(
    trained: list[tuple[str, int, tuple[str, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    assert main(words(out, "plain=", "fast=--gamma 0.9")) == 0
    assert main(words(out, "plain=", "fast=--gamma 0.8")) == 2
    assert "want new names for new words" in capsys.readouterr().err
    assert main(words(out, "plain=", steps="3000")) == 2
    assert "want an --out of its own" in capsys.readouterr().err
    assert main(words(out, "plain=", "fast=--gamma 0.9")) == 0  # a pilot that goes on
    assert len(trained) == 12
