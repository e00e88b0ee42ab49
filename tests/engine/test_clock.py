"""The clock of the phases: what it adds up, per step and as a share of the time."""

import time

import pynvml
import pytest
import torch

from storm_fast.engine.clock import PhaseClock, gpu_busy
from storm_fast.train import _postfix


def test_phases_are_per_step_and_those_of_the_device_fill_a_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now_s[0])
    clock = PhaseClock(torch.device("cpu"))
    for _ in range(2):
        with clock("model"):
            now_s[0] += 0.3
        with clock.host("games"):
            now_s[0] += 0.1
    now_s[0] += 0.2
    means = clock.pop(4)
    assert means == pytest.approx({"time/model_ms": 150.0, "time/games_ms": 50.0, "time/in_phases": 0.6})
    now_s[0] += 1.0
    assert clock.pop(4) == {"time/in_phases": 0.0}


def test_the_gpu_is_as_busy_as_nvml_says_and_nothing_is_said_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:3")
    monkeypatch.setattr(torch.cuda, "utilization", lambda asked: 83 if asked == device else 0)
    assert gpu_busy(device) == {"time/gpu_busy": 0.83}
    assert PhaseClock(device).pop(1).keys() == {"time/in_phases", "time/gpu_busy"}
    for error in (pynvml.NVMLError_NotSupported(), RuntimeError("no driver")):

        def fail(_: torch.device, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(torch.cuda, "utilization", fail)
        assert gpu_busy(device) == {}
        assert PhaseClock(device).pop(1).keys() == {"time/in_phases"}


def test_the_progress_bar_has_the_times_and_what_is_known_of_the_gpu() -> None:
    values = {"model/total": 12.345678, "time/model_ms": 1.234567, "time/in_phases": 0.987}
    assert _postfix(values, 3.0) == "return 3, model 12.35, ms a step: model 1.23, in phases 99%"
    assert _postfix(values | {"time/gpu_busy": 0.5}, 3.0).endswith(", in phases 99%, GPU busy 50%")


@pytest.mark.gpu
def test_on_a_gpu_a_phase_is_timed_by_the_device() -> None:
    clock = PhaseClock(torch.device("cuda"))
    x = torch.randn(4096, 4096, device="cuda")
    for _ in range(3):
        with clock("model"):
            for _ in range(20):
                x = (x @ x).clamp(-1, 1)
    means = clock.pop(3)
    assert means["time/model_ms"] > 1  # 20 products of 137 GFLOP; launching them takes a fraction
    assert 0 < means["time/in_phases"] <= 1.01
    assert 0 <= means.get("time/gpu_busy", 0.0) <= 1
