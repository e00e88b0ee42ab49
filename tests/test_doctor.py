"""The doctor: what it lists, what it measures, and the estimate it makes of that."""

from dataclasses import replace

import pytest

from storm_fast import doctor
from storm_fast.collect import extension
from storm_fast.config import preset
from storm_fast.precision import choose
from tests.small import small_config

MS = {"play": 8.0, "model": 30.0, "imagine": 10.0, "agent": 2.0}


def test_the_estimate_counts_each_phase_as_often_as_the_loop_runs_it() -> None:
    assert doctor.estimate_s(preset("storm"), MS) == pytest.approx(102_000 * 0.050)
    tiny = replace(preset("tiny"), steps=1000)  # four games, a model update each 3 steps, an agent update each 12
    assert doctor.estimate_s(tiny, MS) == pytest.approx(1000 * (8 / 4 + 30 / 3 + 12 / 12) / 1e3)


@pytest.mark.parametrize(
    ("seconds", "said"), [(90, "90 seconds"), (600, "10.0 minutes"), (7.5 * 3600, "7.5 hours"), (864_000, "10.0 days")]
)
def test_durations_are_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert doctor._lasting(seconds) == said


def test_every_phase_of_a_real_step_is_measured() -> None:
    ms = doctor.measure(small_config(), choose("cpu", "fp32"), seconds=0.0)
    assert ms.keys() == MS.keys()
    assert all(x > 0 for x in ms.values())


@pytest.mark.parametrize(("model_ms", "advice"), [(30.0, "--preset storm --game Breakout"), (9000.0, "--preset tiny")])
def test_the_report_names_what_there_is_and_what_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_ms: float, advice: str
) -> None:
    monkeypatch.setattr(doctor, "measure", lambda *_: MS | {"model": model_ms})
    assert doctor.main(["--game", "Breakout", "--device", "cpu"]) == 0
    report = capsys.readouterr().out
    for name in ("torch", "gpus", "cpus", "triton", "kernels    reference", "compiler", "estimate"):
        assert name in report
    assert ("C++ (storm_fast._collector)" in report) == (extension() is not None)
    assert advice in report


def test_bad_input_is_told_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--device", "cuda:99"]) == 2
    assert "want a device that is there" in capsys.readouterr().err
    assert doctor.main(["--game", "Pnog", "--device", "cpu", "--seconds", "0"]) == 2
    assert "Pong" in capsys.readouterr().err
