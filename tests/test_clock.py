"""The clock of the phases: what it adds up, per step and as a share of the time."""

import time

import pytest
import torch

from storm_fast.clock import PhaseClock


def test_phases_are_per_step_and_busy_is_the_share_of_those_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert means == pytest.approx({"time/model_ms": 150.0, "time/games_ms": 50.0, "time/busy": 0.6})
    now_s[0] += 1.0
    assert clock.pop(4) == {"time/busy": 0.0}


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
    assert 0 < means["time/busy"] <= 1.01
