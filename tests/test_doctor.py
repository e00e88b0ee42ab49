"""The doctor: what it lists, what it measures, and the estimate it makes of that."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from storm_fast import doctor
from storm_fast.config import Config, preset
from storm_fast.engine.precision import choose
from storm_fast.envs import extension
from tests.small import small_config

MS = {"play": 8.0, "model": 30.0, "imagine": 10.0, "agent": 2.0}


def test_the_estimate_counts_each_phase_as_often_as_the_loop_runs_it() -> None:
    assert doctor.estimate_s(preset("storm"), MS) == pytest.approx(102_000 * 0.050)
    tiny = replace(preset("tiny"), steps=1000)  # four games, a model update each 3 steps, an agent update each 6
    assert doctor.estimate_s(tiny, MS) == pytest.approx(1000 * (8 / 4 + 30 / 3 + 12 / 6) / 1e3)


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
    for name in ("torch", "gpus", "cpus", "triton", "kernels    reference", "compiler", "measuring"):
        assert name in report
    assert report.count("estimate") == 2
    assert "9,000 steps of Freeway, preset tiny" in report
    assert ("C++ (storm_fast.envs._collector)" in report) == (extension() is not None)
    assert advice in report


@pytest.mark.parametrize("error", [RuntimeError("`act` cannot be recorded\nmore"), torch.OutOfMemoryError("no memory")])
def test_what_cannot_be_captured_is_measured_and_recommended_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    def measure(config: Config, *_: Any) -> dict[str, float]:
        if config.compile:
            raise error
        return MS

    monkeypatch.setattr(doctor, "measure", measure)
    captured = replace(preset("storm"), compile=True)
    compiles, _ = doctor.report(captured, choose("cpu", "fp32"), 1.0)
    assert not compiles
    said = capsys.readouterr().out
    assert "--compile fails: " + str(error).splitlines()[0] in said
    assert "more" not in said
    assert "with --compile" not in said.split("estimate")[1]


def test_want_of_memory_is_told_and_other_errors_are_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_with(error: RuntimeError) -> Callable[..., Any]:
        def measure(*_: Any) -> Any:
            raise error

        return measure

    monkeypatch.setattr(doctor, "measure", fail_with(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    assert doctor.main(["--device", "cpu"]) == 2
    assert "want more memory for preset storm" in capsys.readouterr().err
    monkeypatch.setattr(doctor, "measure", fail_with(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        doctor.main(["--device", "cpu"])


def test_a_driver_without_a_torch_for_it_is_hinted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor._no_gpu() == "none"
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "build for CPUs" in doctor._no_gpu()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "if CUDA 13.0 can" in doctor._no_gpu()


@pytest.mark.gpu
def test_a_gpus_memory_is_named() -> None:
    listed = doctor.inventory(preset("storm"), choose("cuda", "auto"))["gpus"]
    assert torch.cuda.get_device_name(0) in listed
    assert " GB" in listed


def test_bad_input_is_told_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--device", "cuda:99"]) == 2
    assert "want a device that is there" in capsys.readouterr().err
    assert doctor.main(["--game", "Pnog", "--device", "cpu", "--seconds", "0"]) == 2
    assert "Pong" in capsys.readouterr().err
