"""A sweep: which commands it runs, on which devices, and what it does where some are done or fail."""

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storm_fast import sweep
from storm_fast.runs.run import Run
from storm_fast.sweep import main
from tests.small import small_config, untrained_run


class Processes:
    """Stands in for subprocess.call: keeps the words, and leaves behind what trainer and evaluation would."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.devices: list[str] = []
        self.running: list[str] = []
        self.most = 0
        self.codes: dict[str, int] = {}
        self.lock = threading.Lock()

    def call(self, command: list[str], **_: Any) -> int:
        """Run one command."""
        words = command[2:]
        device = words[words.index("--device") + 1]
        with self.lock:
            self.words.append(words)
            self.devices.append(device)
            self.running.append(device)
            self.most = max(self.most, len(self.running))
        if words[0] == "storm_fast.train":
            path = Path(words[words.index("--resume" if "--resume" in words else "--run-dir") + 1])
            code = self.codes.get(path.name, 0)
            if code == 0:
                config = replace(small_config(words[words.index("--game") + 1]), steps=96)
                run = Run.open(path) if path.exists() else Run.create(path, config)
                (run.path / "ckpt" / "96").mkdir()
        else:
            code = 0
            (Path(words[1]) / "eval" / "96.json").write_text(json.dumps({"step": 96, "score": 1.0}))
        with self.lock:
            self.running.remove(device)
        return code

    def of(self, program: str) -> list[list[str]]:
        """The commands of one program."""
        return [words for words in self.words if words[0] == f"storm_fast.{program}"]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    made = Processes()
    monkeypatch.setattr(sweep.subprocess, "call", made.call)
    return made


def test_every_game_and_seed_is_trained_then_evaluated_then_reported(processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "all"
    words = ["--games", "Pong", "Boxing", "--seeds", "7", "8", "--out", str(out), "--", "--gamma", "0.9"]
    assert main(words) == 0
    trained = [(w[w.index("--game") + 1], w[w.index("--seed") + 1]) for w in processes.of("train")]
    assert trained == [("Pong", "7"), ("Boxing", "7"), ("Pong", "8"), ("Boxing", "8")]
    assert all(w[-2:] == ["--gamma", "0.9"] for w in processes.of("train"))
    assert [w[0].split(".")[1] for w in processes.words] == ["train", "evaluate"] * 4
    assert (out / "report.html").read_text().count("Pong-s") > 0


def test_a_sweep_without_matplotlib_says_that_there_is_no_report(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--games", "Pong", "--seeds", "7", "--out", str(tmp_path / "all")]) == 0
    assert "no report: want matplotlib for the curves" in capsys.readouterr().out


def test_what_is_done_is_passed_over_and_what_was_stopped_is_resumed(processes: Processes, tmp_path: Path) -> None:
    untrained_run(tmp_path / "Pong-s1", small_config("Pong"), [40])  # of 96 steps
    untrained_run(tmp_path / "Pong-s2", small_config("Pong"), [96])
    done = untrained_run(tmp_path / "Pong-s3", small_config("Pong"), [96])
    (done.path / "eval" / "96.json").write_text(json.dumps({"step": 96, "score": 1.0}))
    assert main(["--games", "Pong", "--seeds", "1", "2", "3", "--out", str(tmp_path)]) == 0
    assert [w[1:3] for w in processes.of("train")] == [["--resume", str(tmp_path / "Pong-s1")]]
    assert [w[1] for w in processes.of("evaluate")] == [str(tmp_path / "Pong-s1"), str(tmp_path / "Pong-s2")]


def test_runs_are_dealt_to_devices_and_never_more_at_once(processes: Processes, tmp_path: Path) -> None:
    words = ["--games", "Pong", "--seeds", *map(str, range(8)), "--devices", "cuda:0", "cuda:1", "--at-once", "2"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert len(processes.of("train")) == 8
    assert set(processes.devices) <= {"cuda:0", "cuda:1"}
    assert 1 <= processes.most <= 4


def test_a_run_that_fails_is_named_and_the_others_go_on(
    processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.codes["Pong-s2"] = -9
    assert main(["--games", "Pong", "--seeds", "1", "2", "3", "--out", str(tmp_path)]) == 1
    assert f"Pong-s2: stopped with code -9; the end of {tmp_path / 'Pong-s2.log'}" in capsys.readouterr().out
    assert len(processes.of("evaluate")) == 2


def test_words_that_the_trainer_refuses_end_the_sweep(processes: Processes, tmp_path: Path) -> None:
    processes.codes |= {f"Pong-s{seed}": 2 for seed in range(50)}
    assert main(["--games", "Pong", "--seeds", *map(str, range(50)), "--out", str(tmp_path)]) == 1
    assert len(processes.words) == 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--games", "Pongg"], "want a game of ALE; got 'Pongg'"),
        (["--games", "Pong", "--", "--seed", "3"], "got ['--seed']"),
        (["--games", "Pong", "--", "--run_dir=x"], "got ['--run_dir=x']"),
        (["--games", "Pong", "--at-once", "0"], "want --at-once of at least 1"),
        (["--games", "Pong", "--episodes", "7"], "--episodes that 5 divides"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    words: list[str], wanted: str, processes: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["--out", str(out), *words]) == 2
    assert wanted in capsys.readouterr().err
    assert not out.exists()
    assert not processes.words
