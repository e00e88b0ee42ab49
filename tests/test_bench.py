"""The benchmarks as an instrument: what is wrong gets no time, what has become slower is reported, the page of results
says what was measured.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import ablations, bench_collect, bench_step, conftest, memory
from bench.conftest import case_info
from bench.instrument import (
    apart,
    climb,
    footprint,
    guard,
    ladders,
    machine,
    ours,
    page,
    released,
    report,
    table,
    timer,
)
from bench.instrument import saved as saved_runs
from bench.instrument.ceilings import Ceilings
from bench.instrument.correct import difference
from bench.instrument.harness import Rounds, Subject, interleave, measure, operation_forms
from storm_fast.engine import learn
from storm_fast.engine.precision import choose
from storm_fast.envs import extension
from storm_fast.kernels.cost import Cost
from tests.small import small_config

ROOT = Path(__file__).resolve().parents[1]
COLLECTORS = ROOT / "bench" / "bench_collect.py"
needs_collector = pytest.mark.skipif(extension() is None, reason="the C++ collector was not built")

PLANTED = """
import os, time
import torch
from bench.instrument.forms import in_forms
from bench.instrument.harness import Subject
from storm_fast.kernels.cost import Cost

def right(x):
    time.sleep(0.01 + float(os.environ.get("PLANTED_SLEEP", 0)))
    return x * 2

def peer(x):
    time.sleep(0.03)
    return x + x

FORMS = {"reference": right, "peer": peer, "wrong": lambda x: x * 2.1, "broken": lambda x: x.nothing}
INPUTS = lambda: (torch.randn(2**20),)

@in_forms(*FORMS)
def bench_planted(compare, form):
    # No cost: shares of a roof that is measured anew in each run are not what is planted.
    compare("doubled", form, lambda: Subject(INPUTS, FORMS, Cost(0, 0), ours="reference"))
"""
SHAPES = """
import pytest, torch
from bench.instrument.forms import in_forms
from bench.instrument.harness import Subject
from storm_fast.kernels.cost import Cost

torch.compile = lambda call, dynamic: call
FORMS = {"reference": lambda x: x * 2, "compiled": lambda x: x + x}

@in_forms(*FORMS)
@pytest.mark.parametrize("n", [1, 2, 3])
def bench_shapes(compare, n, form):
    compare(f"doubled {n}", form, lambda: Subject(lambda: (torch.randn(n),), FORMS, Cost(0, 0), ours="reference"))
"""
COLLECTOR_PLANT = """
import os, time
from storm_fast.envs import Collector

step = Collector.step

def planted(self, action_N, out=None):
    time.sleep(float(os.environ.get("PLANTED_SLEEP", 0)))
    steps = step(self, action_N, out)
    return steps._replace(reward_N=steps.reward_N + float(os.environ.get("PLANTED_REWARD", 0)))

Collector.step = planted
"""


def benchmarks(
    file: Path, *arguments: Any, plugins: Path = ROOT, quick: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`pytest --benchmark-only --quick` in a process of its own, which ends with what the terminal showed.

    Without a GPU: what is planted sleeps on the host, and a graph would replay none of it.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        file,
        "--benchmark-only",
        *(["--quick"] if quick else []),
        "-p",
        "no:cacheprovider",
        *arguments,
    ]
    if not file.is_relative_to(ROOT):  # the harness comes with the folder of the project's own
        command += ["-p", "bench.conftest", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    # As in a worker of pytest-xdist it would time nothing.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=outer | {"PYTHONPATH": f"{ROOT}{os.pathsep}{plugins}", "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of one operation: right, a peer that is right, wrong, broken."""
    file = tmp_path_factory.mktemp("planted") / "bench_planted.py"
    file.write_text(PLANTED)
    return file


@pytest.fixture(scope="module")
def saved(planted: Path) -> Path:
    """What it measures without a fault in the right ones."""
    file = planted.with_name("saved") / "run.json"
    done = benchmarks(planted, f"--benchmark-json={file}")
    assert file.exists(), done.stdout + done.stderr
    assert done.returncode == 1  # of the wrong ones
    return file


def test_a_wrong_form_is_reported_and_has_no_time(saved: Path) -> None:
    run = json.loads(saved.read_text())
    assert sorted(b["extra_info"]["form"] for b in run["benchmarks"]) == ["peer", "reference"]
    wrong, failed = run["device"]["wrong"], run["device"]["failed"]
    assert set(wrong) == {"doubled: wrong"}
    assert "off by 0.05" in wrong["doubled: wrong"]
    assert set(failed) == {"doubled: broken"}
    assert "AttributeError" in failed["doubled: broken"]


def test_the_terminal_names_what_is_wrong(planted: Path) -> None:
    shown = benchmarks(planted).stdout
    assert "doubled: wrong: WRONG: result 0 is off by 0.05" in shown
    assert "doubled: broken: FAILED: AttributeError" in shown
    assert "x" in next(line for line in shown.splitlines() if line.startswith("  peer"))


def test_the_terminal_names_what_is_wrong_where_nothing_was_timed(planted: Path) -> None:
    shown = benchmarks(planted, "-k", "wrong or broken").stdout
    assert "doubled: wrong: WRONG: result 0 is off by 0.05" in shown
    assert "doubled: broken: FAILED: AttributeError" in shown
    assert "roof: " in shown


def test_a_planted_slowdown_fails_the_comparison_and_an_equal_run_does_not(planted: Path, saved: Path) -> None:
    arguments = (planted, "-k", "reference or peer", f"--benchmark-compare={saved}")
    same = benchmarks(*arguments)
    assert same.returncode == 0, same.stdout
    assert "1 ratios and shares compared with the stored run: 0 worse; 0 of" in same.stdout
    slower = benchmarks(*arguments, PLANTED_SLEEP="0.05")
    assert slower.returncode == 1, slower.stdout
    assert "SLOWER: " in slower.stdout
    assert "bench_planted[peer]: takes 0." in slower.stdout


def test_a_cpu_compiles_the_last_shape_alone(tmp_path: Path) -> None:
    file = tmp_path / "bench_shapes.py"
    file.write_text(SHAPES)
    shown = benchmarks(file, "-rs", quick=False).stdout
    assert "absent: compiled (on a CPU only the last shape of each operation is compiled): 2 operations" in shown
    assert "absent: compiled (on a CPU only" not in shown.split("2 operations")[1]


@needs_collector
def test_a_planted_slowdown_of_the_collector_is_reported(tmp_path: Path) -> None:
    (tmp_path / "plant.py").write_text(COLLECTOR_PLANT)
    arguments = ("-p", "plant", "-k", "Pong-8-1-ours or Pong-8-1-AtariVectorEnv")
    saved = tmp_path / "saved.json"
    before = benchmarks(COLLECTORS, *arguments, f"--benchmark-json={saved}", plugins=tmp_path)
    assert before.returncode == 0, before.stdout
    after = benchmarks(COLLECTORS, *arguments, f"--benchmark-compare={saved}", plugins=tmp_path, PLANTED_SLEEP="0.01")
    assert after.returncode == 1, after.stdout
    assert "SLOWER: bench/bench_collect.py::bench_collect[Pong-8-1-AtariVectorEnv]" in after.stdout


@needs_collector
def test_a_peer_that_does_not_start_leaves_the_others_and_all_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def start(name: str, shown: np.ndarray) -> Callable[..., Any]:
        return lambda *_: bench_collect.Candidate(lambda _: None, lambda: closed.append(name), shown)

    def broken(*_: Any) -> Any:
        raise OSError("no ROM")

    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    peers = {"ours": start("ours", pictures), "AtariVectorEnv": start("AtariVectorEnv", pictures.transpose(0, 3, 1, 2))}
    peers |= {"envpool": start("envpool", pictures[:, :, :, :1]), "Sync": broken, "emulation": start("emulation", None)}
    monkeypatch.setattr(bench_collect, "START", peers)
    monkeypatch.setattr(bench_collect, "FORMS", tuple(peers))
    monkeypatch.setattr(bench_collect, "absent", lambda *_: {})
    found = bench_collect.collected("Pong", 2, 1, rounds=1)
    assert found.failed == {"Sync": "OSError: no ROM"}
    assert found.wrong == {"envpool": "it shows uint8 [2, 64, 64, 1], not 2 pictures of 64 x 64 x 3"}
    assert set(found.seconds) == {"ours", "AtariVectorEnv", "emulation"}
    assert sorted(closed) == ["AtariVectorEnv", "emulation", "envpool", "ours"]


@needs_collector
def test_a_planted_wrong_result_of_the_collector_is_reported(tmp_path: Path) -> None:
    (tmp_path / "plant.py").write_text(COLLECTOR_PLANT)
    arguments = ("-p", "plant", "-k", "Pong-8-1-ours or Pong-8-1-AtariVectorEnv")
    shown = benchmarks(COLLECTORS, *arguments, plugins=tmp_path, PLANTED_REWARD="1")
    assert shown.returncode == 1, shown.stdout
    assert "collect Pong, games 8, threads 1: ours: WRONG: reward_N differs from the slow twin's" in shown.stdout
    assert not [line for line in shown.stdout.splitlines() if line.startswith("  ours")]


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on the host, as the functions below it do, also where there is a GPU."""
    for module in (timer, machine, footprint):
        monkeypatch.setattr(module, "IS_GPU", False)
    monkeypatch.setattr(timer, "DEVICE", torch.device("cpu"))


def subject(**forms: Callable[..., Any]) -> Subject:
    return Subject(lambda: (torch.randn(64, 64),), forms, Cost(64 * 64, 8 * 64 * 64), ours="reference")


@pytest.mark.gpu
def test_a_gpu_times_what_its_graph_replays() -> None:
    def forms(cycles: int) -> dict[str, Callable[..., Any]]:
        def slowed(x: torch.Tensor) -> torch.Tensor:
            torch.cuda._sleep(cycles)
            return x * 2

        return {"reference": slowed, "peer": lambda x: x + x, "wrong": lambda x: x * 2.1, "broken": lambda x: x.cpu()}

    def measured(cycles: int) -> Rounds:
        planted = Subject(lambda: (torch.randn(2**20, device="cuda"),), forms(cycles), Cost(1, 2**23), ours="reference")
        return measure(planted, 5, {})

    before, after = measured(100_000), measured(2_000_000)
    assert set(after.wrong) == {"wrong"}
    assert set(after.failed) == {"broken"}  # a host that waits cannot be captured
    ratios = [float(np.median(found.over_ours("peer"))) for found in (before, after)]
    assert ratios[1] < 0.2 * ratios[0]
    assert min(after.seconds["reference"]) > 2_000_000 / 4e9  # no clock is that fast


@pytest.mark.gpu
def test_a_gpu_captures_gradients_of_inputs_that_a_definition_has_seen() -> None:
    def gradient(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x.square(), *torch.autograd.grad(x.square().sum(), x))

    inputs = lambda: (torch.randn(64, 64, device="cuda").requires_grad_(),)  # noqa: E731
    found = measure(Subject(inputs, {"reference": gradient, "peer": gradient}, Cost(1, 1), ours="reference"), 2, {})
    assert not found.wrong | found.failed
    assert set(found.seconds) == {"reference", "peer"}


@pytest.mark.usefixtures("on_a_cpu")
def test_forms_that_draw_are_compared_by_what_stands_for_them() -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)

    forms = {"reference": noisy, "peer": noisy}
    drawn = measure(subject(**forms), 1, {})
    assert set(drawn.wrong) == {"reference", "peer"}  # a definition is to repeat itself
    quiet = {name: lambda x: x.clone() for name in forms}
    stood_for = measure(replace(subject(**forms), compared=quiet), 1, {})
    assert not stood_for.wrong
    assert {name: len(s) for name, s in stood_for.seconds.items()} == {"reference": 1, "peer": 1}


@pytest.mark.usefixtures("on_a_cpu")
def test_each_form_gets_inputs_of_its_own() -> None:
    found = measure(subject(reference=lambda x: x.mul_(2), peer=lambda x: x.mul_(2)), 2, {"third": "not here"})
    assert not found.wrong
    assert not found.absent  # only forms that the subject has
    assert all(s > 0 for times in found.seconds.values() for s in times)


@pytest.mark.usefixtures("on_a_cpu")
def test_skipped_forms_are_absent_with_their_reason() -> None:
    skipped = {"triton": "no GPU", "compiled": "no time"}
    found = measure(Subject(lambda: (torch.ones(3),), operation_forms(lambda x: x + 1), Cost(1, 1)), 1, skipped)
    assert found.absent == skipped
    assert set(found.seconds) == {"reference"}


@pytest.mark.usefixtures("on_a_cpu")
def test_a_form_that_raises_has_failed_and_is_not_wrong() -> None:
    found = measure(subject(reference=lambda x: x + 1, broken=lambda x: x.nothing), 1, {})
    assert not found.wrong
    assert "AttributeError" in found.failed["broken"]
    undefined = measure(subject(reference=lambda x: x.nothing, peer=lambda x: x + 1), 1, {})
    assert set(undefined.failed) == {"reference", "peer"}
    assert not undefined.seconds


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.02])
def test_difference_finds(value: float) -> None:
    truth = torch.ones(10)
    assert difference([truth], [truth * 1.005], 1e-2, 0.1) is None
    result = torch.full((10,), value) if value == 1.02 else truth.clone()
    result[3] = value
    assert difference([truth], [result], 1e-2, 0.1) is not None


def test_difference_finds_a_single_wrong_row() -> None:
    truth = torch.randn(10_000, 8)
    result = truth.clone()
    result[77] = 0
    assert "a row of result 0" in str(difference([truth], [result], 2e-2, 0.1))


def test_difference_finds_another_shape_and_another_number_of_results() -> None:
    x = torch.ones(2, 3)
    assert "shapes" in str(difference([x], [x.T], 1.0, 1.0))
    assert "shapes" in str(difference([x], [x, x], 1.0, 1.0))


def test_rounds_correspond_and_their_order_changes() -> None:
    order: list[str] = []

    def turn(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    seconds = interleave({name: turn(name) for name in "abc"}, rounds=20, warmup=1)
    assert {len(s) for s in seconds.values()} == {20}
    rounds = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3


def test_ratios_are_of_each_round() -> None:
    found = Rounds("ours", seconds={"ours": [1.0, 2.0, 4.0], "peer": [2.0, 6.0, 4.0]})
    assert found.over_ours("peer") == [2.0, 3.0, 1.0]


def ratio(q3: float, median: float, rounds: int = 9) -> dict[str, Any]:
    return {"over_ours": {"q1": median, "median": median, "q3": q3, "rounds": rounds}}


def test_the_guard_holds_ratios_beyond_their_spread() -> None:
    stored = {name: ratio(2.1, 2.0) for name in "abde"} | {"c": {}, "gone": ratio(1, 1)}
    now = {"a": ratio(1.75, 1.5), "b": ratio(1.65, 1.5), "c": ratio(1, 1), "new": ratio(1, 1)}
    now |= {"d": ratio(1.5, 1.45, rounds=2), "e": ratio(1.35, 1.3, rounds=2)}
    verdict = guard.judge(stored, now)
    assert verdict.compared == 4
    assert verdict.missing == ["gone"]
    assert [line.split(":")[0] for line in verdict.worse] == ["b", "e"]
    assert "takes 1.50 times as long as ours; 2.00 times" in verdict.worse[0]


def test_the_guard_holds_shares_of_the_roof_of_ours() -> None:
    def share(median: float, best: float, ours: bool = True) -> dict[str, Any]:
        return {"ours": ours, "share_of_roof": median, "share_best": best}

    stored = {name: share(0.5, 0.5) for name in "abd"} | {"c": share(0.5, 0.5, ours=False)}
    now = {"a": share(0.2, 0.3), "b": share(0.2, 0.26), "c": share(0.1, 0.1, ours=False)}
    verdict = guard.judge(stored, now)
    assert verdict.worse == ["b: ours reaches 20.0% of the roof; 50.0% in the stored run"]
    assert verdict.compared == 2
    assert verdict.missing == ["d"]


def test_a_sleep_in_the_model_update_that_all_forms_share_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(small_config(), device="auto", precision="auto", kernels="auto")
    monkeypatch.setattr(bench_step, "preset", lambda _: small)
    monkeypatch.setattr(bench_step, "fault", lambda _: None)
    monkeypatch.setattr(bench_step, "why_absent", lambda: "not here")
    monkeypatch.setattr(bench_step, "PLACE", apart.Here)  # in another process nothing would be patched
    ceilings = Ceilings(1e10, 1e11, 1e11, 1e-6, 1e-6)

    def shares() -> dict[str, dict[str, Any]]:
        step = bench_step.Step(quick=True)
        return {phase: case_info(bench_step.OURS[-1], found, ceilings) for phase, found in step.found.items()}

    before = shares()
    update = learn.update_world_model

    def slowed(*arguments: Any) -> Any:
        torch.cuda._sleep(10**8) if torch.cuda.is_available() else time.sleep(0.5)
        return update(*arguments)

    monkeypatch.setattr(learn, "update_world_model", slowed)
    verdict = guard.judge(before, shares())
    assert {line.split(":")[0] for line in verdict.worse} >= {"model", "whole"}


def test_a_form_that_fails_while_it_is_timed_has_failed_and_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_step, "preset", lambda _: replace(small_config(), device="auto", precision="auto"))
    monkeypatch.setattr(bench_step, "fault", lambda _: None)
    monkeypatch.setattr(bench_step, "why_absent", lambda: "not here")
    monkeypatch.setattr(bench_step, "PLACE", apart.Here)
    timed, turns = apart.Here.timed, itertools.count()

    def failing(self: apart.Here, name: str) -> tuple[float, float]:
        if next(turns) == 9:  # in the second round
            raise MemoryError(name)
        return timed(self, name)

    monkeypatch.setattr(apart.Here, "timed", failing)
    found = bench_step.Step(quick=True).found
    assert found["whole"].failed == {bench_step.OURS[-1]: "MemoryError: model"}
    assert not any(rounds.seconds for rounds in found.values())


class FakeNvml:
    """An NVML of one GPU, slowed by heat and by its power limit."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVMLError = RuntimeError

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = {
            "nvmlDeviceGetHandleByUUID": "gpu",
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x4 | 0x40,
            "nvmlDeviceGetClockInfo": 1200,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 700_000,
            "nvmlDeviceGetEnforcedPowerLimit": 650_000,
            "nvmlDeviceGetMemoryBusWidth": 5120,
            "nvmlDeviceGetComputeRunningProcesses": [1, 2],
        }

        def answer(*_: Any) -> Any:
            if name not in answers:
                raise RuntimeError("not supported")
            return answers[name]

        return answer


def test_a_throttled_and_shared_gpu_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="x"))
    state = machine.gpu_state(FakeNvml())
    assert state["throttled_by"] == ["power cap", "hardware thermal slowdown"]
    assert state["power_w"] == 700
    assert state["temperature_c"] is None  # what the driver does not tell
    calm = state | {"throttled_by": [], "processes": 1}
    assert machine.troubles(calm, calm, [calm]) == []
    # Idle at start and end, as a device is then.
    assert machine.troubles(calm, calm, [calm, state]) == [
        "throttled: hardware thermal slowdown; lowest clock at work 1200 MHz",
        "power cap: the median clock at work was 61% of the highest",
        "shared: another process on the device",
    ]


def test_a_power_cap_is_told_and_distrusted_only_where_it_costs_clocks() -> None:
    calm = {"sm_mhz": 1980, "sm_mhz_most": 1980, "throttled_by": [], "processes": 1}
    capped = calm | {"sm_mhz": 1800, "throttled_by": ["power cap"]}
    assert machine.troubles(calm, calm, [capped, calm]) == []
    assert machine.remarks([capped]) == ["power cap: the median clock at work was 91% of the highest"]
    assert machine.remarks([calm]) == []
    low = capped | {"sm_mhz": 1700}
    assert machine.troubles(calm, calm, [low]) == ["power cap: the median clock at work was 86% of the highest"]
    assert machine.remarks([low]) == []


def test_limits_are_those_of_the_memory_bus_and_the_enforced_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="x"))
    limits = machine.gpu_limits(FakeNvml())
    assert limits == {"sm_mhz": 1980, "memory_mhz": 1980, "bytes_per_s": 2 * 1980e6 * 640, "power_w": 650}
    said = "by NVML at most: 2.53 TB/s, 1980 MHz, memory 1980 MHz, 650 W"
    assert list(table.limits(limits)) == [said]
    assert list(table.limits({})) == []


def test_a_gpu_whose_nvml_does_not_answer_is_measured_nevertheless() -> None:
    state = machine.gpu_state(None)
    assert machine.troubles(state, state, [state]) == []
    assert "is not known" in machine.remarks([state])[0]
    assert list(table.limits(machine.gpu_limits(None))) == []


def test_nvml_that_cannot_start_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert machine._nvml.__wrapped__() is None


def test_a_shared_cpu_is_called_so() -> None:
    cores = len(os.sched_getaffinity(0))
    start = {"at_s": 0.0, "own_s": 0.0, "busy_s": 0.0, "stolen_s": 0.0}
    alone = {"at_s": 10.0, "own_s": 10.0, "busy_s": 10.2, "stolen_s": 0.0}
    assert machine.troubles(start, alone, []) == []
    crowded = alone | {"busy_s": 10.0 + 5.0 * cores, "stolen_s": 2.0 * cores}
    assert machine.troubles(start, crowded, []) == [
        "shared: other programs took 50% of the cores",
        "shared: other machines took 20% of the cores",
    ]


def test_the_description_names_no_machine() -> None:
    described = machine.describe()
    assert described["device"] == machine.device_name()
    assert described["triton"]
    assert described["dtype"] in ("bfloat16", "float32")
    assert os.uname().nodename not in json.dumps(described).split('"')


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.50 s"), (0.0123, "12.30 ms"), (4e-6, "4.00 us"), (5e-8, "50 ns")]
)
def test_duration(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


@pytest.mark.parametrize(
    ("per_s", "text"), [(7.914e14, "791 TFLOP/s"), (5.8e10, "58 GFLOP/s"), (2.34e5, "234 kFLOP/s"), (3.0, "3 FLOP/s")]
)
def test_rate(per_s: float, text: str) -> None:
    assert table.rate(per_s, "FLOP/s") == text


def test_absences_are_gathered_by_reason() -> None:
    lines = list(table.absences({"a: x: triton": "no GPU", "b: triton": "no GPU", "a: x: peer": "not installed"}))
    assert lines == ["absent: peer (not installed): a: x", "absent: triton (no GPU): 2 operations"]


def test_the_exponent_of_a_power_is_its_exponent() -> None:
    points = [ladders.Point(n, 3e-3 * n**1.5, 0.0, 0.0, "") for n in (1, 2, 8, 64)]
    assert ladders.exponent(points) == pytest.approx(1.5)


@pytest.mark.parametrize("path", saved_runs.stored(), ids=lambda p: p.parent.name)
def test_stored_runs_report_as_committed(path: Path) -> None:
    run = saved_runs.load(path)
    pictures = {name: file for name, file in ladders.picture_names(run).items() if (path.parent / file).exists()}
    assert set(pictures) == set(ladders.picture_names(run))
    assert path.with_name("report.md").read_text() == report.markdown(run, pictures)
    assert not run.device["wrong"] | run.device["failed"]


def test_the_page_states_the_stored_runs_with_a_gpu_first() -> None:
    text = page.PAGE.read_text()
    assert page.page([(file, saved_runs.load(file)) for file in saved_runs.stored()]) == text
    assert text.index("NVIDIA H100") < text.index("AMD EPYC")
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len(linked) > 2
    assert [name for name in linked if not (page.RESULTS / name).is_file()] == []


def rung_of(seconds: Callable[[int], float], order: list[int] | None = None) -> Callable[[int], climb.Rung]:
    """A rung whose call sleeps, and says when it was its turn."""

    def rung(size: int) -> climb.Rung:
        def call() -> None:
            if order is not None:
                order.append(size)
            time.sleep(seconds(size))

        return climb.Rung(lambda: call, "things", size)

    return rung


@pytest.mark.usefixtures("on_a_cpu")
def test_the_ladder_ends_where_its_next_rung_is_predicted_to_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb, "LONGEST_S", 0.35)
    found = climb.climb("a ladder", "size", (1, 2, 4, 8), rung_of(lambda size: 0.1 * size), is_quick=True)
    assert [bool(one.absent) for one in found.values()] == [False, False, True, True]
    assert all(re.match(r"predicted \d+\.\d+ m?s a call; 350.00 ms", found[size].absent["ours"]) for size in (4, 8))
    assert min(found[2].seconds["ours"]) >= 0.2


@pytest.mark.usefixtures("on_a_cpu")
def test_one_slow_call_does_not_end_a_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb, "LONGEST_S", 0.35)
    monkeypatch.setattr(climb, "SHORT_S", 0.01)
    slow = iter([0.3])
    found = climb.climb("a ladder", "size", (1, 2), rung_of(lambda size: next(slow, 0.05)), is_quick=True)
    assert found[2].seconds["ours"]


def test_a_prediction_has_the_ladders_own_power() -> None:
    assert climb.predicted_s({}, 64) == 0
    assert climb.predicted_s({64: 0.3}, 128) == pytest.approx(0.6)
    assert climb.predicted_s({4: 9.0, 64: 0.2, 256: 0.4, 1024: 0.8}, 4096) == pytest.approx(1.6)


@pytest.mark.usefixtures("on_a_cpu")
def test_rungs_take_turns_and_short_calls_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climb, "SHORT_S", 0.03)
    order: list[int] = []
    found = climb.climb("a ladder", "size", (1, 50), rung_of(lambda size: 1e-3 * size, order), is_quick=True)
    assert len(found[1].seconds["ours"]) >= 7
    assert len(found[50].seconds["ours"]) >= climb.MOST
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes > climb.MOST


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_ladder_ends_where_memory_does_and_says_so(error: type[Exception]) -> None:
    def rung(size: int) -> climb.Rung:
        def start() -> Callable[[], None]:
            if size > 2:
                raise error
            return lambda: None

        return climb.Rung(start, "things", size)

    found = climb.climb("a ladder", "size", (1, 2, 4, 8), rung, is_quick=True)
    assert [bool(one.seconds) for one in found.values()] == [True, True, False, False]
    assert found[4].absent["ours"] == "out of memory, beside the smaller ones"
    assert found[8].absent["ours"] == "a smaller one was out of memory"


@pytest.mark.usefixtures("on_a_cpu")
def test_a_rung_that_fails_leaves_the_others() -> None:
    found = climb.climb("a ladder", "size", (1, 2), rung_of(lambda size: {1: 1e-3}[size]), is_quick=True)
    assert found[1].seconds["ours"]
    assert "KeyError" in found[2].failed["ours"]


@pytest.mark.usefixtures("on_a_cpu")
def test_the_footprint_is_what_is_added_at_the_peak() -> None:
    before = footprint.before_mb()
    ballast = np.ones(64 * 2**20, np.uint8)
    added = footprint.added_mb(before)
    assert ballast[0] == 1
    assert 60 < added < 90


@pytest.mark.usefixtures("on_a_cpu")
def test_memory_is_read_along_a_training_run() -> None:
    held = memory.held_mb(small_config(), turns=4, every=2)
    assert len(held) == 2
    assert all(0 < mb < 1e5 for mb in held)


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("name", ablations.VARIANTS)
def test_what_an_ablation_takes_away_changes_no_result(name: str) -> None:
    def losses(without: Callable[[], Any]) -> dict[str, float]:
        with without():
            run = ours.Ours(small_config(), choose("cpu", "bf16"))  # in float32 some of them are not there anyway
            for phase in ("model", *ablations.PHASES):
                run.calls[phase]()
        return run.t.means.pop()

    assert losses(ablations.VARIANTS[name].taken_away) == pytest.approx(losses(nullcontext), rel=1e-2, abs=1e-3)


def calls_to_time(error: str) -> apart.Calls:
    """Calls for another process: one that sleeps, one that raises, one that ends the process; 40 MB are made for it."""
    if error:
        raise ValueError(error)
    torch.ones(10**7)

    def raises() -> None:
        raise KeyError("b")

    return {"sleeps": lambda: time.sleep(0.2), "raises": raises, "ends": lambda: os._exit(3)}


@pytest.fixture
def apart_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes see no GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("apart_on_a_cpu")
def test_a_form_apart_is_timed_by_its_own_clock() -> None:
    made = apart.Apart(calls_to_time, "", warmup=0)
    assert 35 < made.added_mb < 200
    assert all(took_s >= 0.2 for took_s in made.timed("sleeps"))
    made.close()


@pytest.mark.usefixtures("apart_on_a_cpu")
@pytest.mark.parametrize(("name", "error"), [("raises", "KeyError: 'b'"), ("ends", "exit code 3")])
def test_a_call_that_fails_apart_says_why(name: str, error: str) -> None:
    made = apart.Apart(calls_to_time, "", warmup=0)
    with pytest.raises(RuntimeError, match=error):
        made.timed(name)
    made.close()


@pytest.mark.usefixtures("apart_on_a_cpu")
def test_a_form_that_cannot_be_made_apart_says_why() -> None:
    with pytest.raises(RuntimeError, match="ValueError: no such form"):
        apart.Apart(calls_to_time, "no such form", warmup=0)


@pytest.mark.parametrize("name", ["model", "agent"])
def test_gradients_that_are_missing_make_a_step_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = {f"{kind}.weight": torch.randn(5) for kind in ("model", "agent")}
    losses = dict.fromkeys(bench_step.COMPARED, 1.0)
    got = want | {f"{name}.weight": torch.zeros(5)}
    steps = {"reference": (want, want), "same": (want, want), "first": (got, want), "second": (want, got)}
    monkeypatch.setattr(bench_step, "small_steps", lambda form: bench_step.SmallSteps(*steps[form], losses))
    assert bench_step.fault("same") is None
    assert f"the gradient of {name}.weight is off by 1 of its norm" == bench_step.fault("first")
    assert "second step" in str(bench_step.fault("second"))


def test_the_released_code_runs_under_its_own_settings_and_ours_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    conv = cudnn.conv  # type: ignore[attr-defined]  # made at run time
    monkeypatch.setattr(cudnn, "benchmark", True)
    before = matmul.fp32_precision, conv.fp32_precision
    seen = []

    @released.as_it_runs()
    def call() -> None:
        seen.append((matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark))
        raise ValueError

    try:
        matmul.fp32_precision = conv.fp32_precision = "ieee"  # as --precision fp32 on a GPU
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^$"):
                call()
        assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
    assert seen == 2 * [("tf32", "tf32", True, False)]
    assert cudnn.benchmark
    assert not cudnn.deterministic


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    info = {"form": "ours", "ours": True, "ladder": "scaling: a thing over size", "peak_mb": 3.0}
    cases = [table.Case("scaling: a thing over size: 1", 1e-3 * n, 0.0, 2, info | {"size": n}) for n in (1, 2, 4)]
    run = saved_runs.Run({"device": "a device"}, {}, "abc", "today", cases)
    pictures = ladders.plot(run, tmp_path)
    assert pictures == ladders.picture_names(run) == {"a thing over size": "a-thing-over-size.png"}
    assert (tmp_path / "a-thing-over-size.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_without_ours_leaves_its_ratios_out() -> None:
    info = {"form": "peer", "ours": False, "unit": "steps", "per_s": 3.0}
    cases = [table.Case(name, 1.0, 0.0, 9, info) for name in ("collect Pong", "step: act")]
    empty = {
        "quick": False,
        "troubles": [],
        "ceilings": {},
        "limits": {},
        "remarks": [],
        "start": {},
        "end": {},
        "at_work": [],
    }
    machine_info = {"device": "a CPU", "instructions": "AVX2", "threads": 2, "torch": "2.13"}
    run = saved_runs.Run(
        machine_info,
        {**empty, "absent": {}, "wrong": {"collect Pong: ours": "why"}, "failed": {}},
        "abc",
        "today",
        cases,
    )
    assert "| collect Pong | peer | 1.00 s |" in report.markdown(run, {})
    stated = page.page([(page.RESULTS / "x" / "benchmarks.json", run)])
    assert "| Pong | absent |" in stated
    assert "Not yet run on a GPU." in stated


def test_the_page_states_spread_and_rounds() -> None:
    ours = {"form": "compiled", "label": "ours (--compile)", "ours": True, "share_of_roof": 0.5}
    over = {"q1": 1.9, "median": 2.0, "q3": 2.1, "rounds": 2}
    cases = [table.Case("step: act", 1.0, 0.1, 5, ours)]
    cases.append(table.Case("step: act", 2.0, 0.1, 2, {"form": "x", "label": "y", "ours": False, "over_ours": over}))
    machine_info = {"device": "a GPU", "cuda": "13", "torch": "2.13"}
    run = saved_runs.Run(machine_info, {"quick": False}, "abc", "today", cases)
    stated = page.page([(page.RESULTS / "x" / "benchmarks.json", run)])
    assert "a GPU, torch 2.13, commit abc, today, medians of 5 rounds:" in stated
    assert "| phase | ours (--compile) | of roof | y / ours |" in stated
    assert "| act | 1,000.00 ms (IQR 10%) | 50% | 2.00 (1.90 to 2.10, 2 rounds) |" in stated


def test_parts_make_a_whole(tmp_path: Path) -> None:
    whole = json.loads(saved_runs.stored()[0].read_text())
    parts = []
    for i, cut in enumerate((slice(0, 5), slice(5, None))):
        part = {**whole, "benchmarks": whole["benchmarks"][cut]}
        part["device"] = {**whole["device"], "absent": {f"{i}: x": "why"}, "troubles": [f"trouble {i}"]}
        parts.append(tmp_path / f"{i}.json")
        parts[-1].write_text(json.dumps(part))
    merged = saved_runs.merge(parts)
    assert merged["benchmarks"] == whole["benchmarks"]
    assert merged["device"]["absent"] == {"0: x": "why", "1: x": "why"}
    assert merged["device"]["troubles"] == ["trouble 0", "trouble 1"]
    other = {**whole, "commit_info": {**whole["commit_info"], "id": "another"}}
    parts[1].write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="one device and commit"):
        saved_runs.merge(parts)


@pytest.mark.parametrize("found", ["unversioned", "abcdef"])
def test_the_commit_that_is_named_goes_before_the_one_that_is_found(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = {"id": found, "dirty": True}
    conftest.pytest_benchmark_update_commit_info(commit)
    assert commit == {"id": found, "dirty": True}
    monkeypatch.setenv("STORM_COMMIT", "0123456789")
    conftest.pytest_benchmark_update_commit_info(commit)
    assert commit == {"id": "0123456789", "dirty": False}


def test_a_run_of_no_known_commit_says_so(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    whole = json.loads(saved_runs.stored()[0].read_text())
    file.write_text(json.dumps(whole | {"commit_info": {"id": "unversioned", "dirty": False}}))
    assert saved_runs.load(file).commit == "unknown"


STAND_IN = """#!/usr/bin/env bash
case "$1" in
  -c) echo "$RESULTS" ;;
  *) echo "$*" | tee -a "$RESULTS/ran"
     for word in "$@"; do case $word in --benchmark-json=*) echo {} >"${word#*=}" ;; esac; done
     [ "$3" != tests/aot ] ;;
esac
"""


def gpu_check(folder: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    """The script with stand-ins for Python, which says what it is asked for, and nvidia-smi."""
    for name, text in (("python", STAND_IN), ("nvidia-smi", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHON": str(folder / "python")}
    environment |= {"RESULTS": str(folder / "results"), "GPU_CHECK_OUT": str(folder / "out")}
    command = ["bash", str(ROOT / "bench" / "gpu_check.sh"), *parts]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_the_check_on_a_gpu_runs_the_parts_that_are_named_and_merges_what_there_is(tmp_path: Path) -> None:
    assert gpu_check(tmp_path, "scaling").returncode == 0
    done = gpu_check(tmp_path, "aot", "step", "golden")
    assert done.returncode == 1  # a part that fails does not end the others
    ran = (tmp_path / "results" / "ran").read_text().splitlines()
    out, results = tmp_path / "out", tmp_path / "results"
    assert ran[0] == f"-m pytest bench/bench_scaling.py --benchmark-only --benchmark-json={out}/scaling.json"
    assert ran[1] == f"-m bench.instrument.report {out}/scaling.json --merge {results}/benchmarks.json"
    assert [line.split()[-1] for line in ran[2:4]] == ["tests/aot", f"--benchmark-json={out}/step.json"]
    assert ran[4] == f"-m bench.instrument.report {out}/step.json {out}/scaling.json --merge {results}/benchmarks.json"
    assert all(line.startswith("tests/golden/check.py") for line in ran[5:])
    forms = ["--device cuda", "--device cuda --kernels triton", "--device cuda --kernels triton --layout channels_last"]
    assert [line.split(maxsplit=2)[2] for line in ran[5:]] == forms
    summary = [line.split()[:3] for line in (results / "checks.txt").read_text().splitlines()]
    assert ["aot", "exit", "1,"] in summary
    assert ["step", "exit", "0,"] in summary


def test_the_check_on_a_gpu_refuses_a_part_that_it_has_not(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, "benhc")
    assert done.returncode == 2
    assert "want parts of" in done.stderr


def test_a_file_that_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"want a file of .*x\.json"):
        saved_runs.load(tmp_path / "x.json")
