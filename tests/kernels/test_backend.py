"""Which implementation runs where."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from storm_fast.engine import build
from storm_fast.engine.precision import choose
from storm_fast.envs import atari
from storm_fast.kernels import backend, categorical
from storm_fast.kernels.backend import using
from storm_fast.kernels.categorical import reference
from tests.kernels.harness import DEVICE
from tests.small import small_config


@pytest.mark.parametrize(
    ("wanted", "device", "runs"),
    [
        ("auto", "cpu", "reference"),
        ("triton", "cpu", "reference"),
        ("auto", "cuda", "triton"),
        ("triton", "cuda", "triton"),
        ("reference", "cuda", "reference"),
    ],
)
def test_a_cpu_runs_the_references_and_a_gpu_what_is_asked_for(wanted: backend.Backend, device: str, runs: str) -> None:
    assert build.resolve_kernels(wanted, torch.device(device)) == runs


def test_the_choice_decides_which_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(reference, "draw", lambda *_: called.append("reference") or torch.zeros(1, dtype=torch.int64))
    for name in ("reference", "auto", "triton"):
        with using(name):  # type: ignore[arg-type]
            assert backend.chosen() == name
            categorical.draw(torch.zeros(1, 3, device=DEVICE), torch.zeros(1, device=DEVICE))
    assert called == (["reference"] if DEVICE == "cuda" else ["reference", "reference"])


def test_a_choice_lasts_as_long_as_its_block_even_where_that_raises() -> None:
    backend.use("reference")
    with pytest.raises(RuntimeError, match="inside"), backend.using("triton"):
        raise RuntimeError("inside")
    assert backend.chosen() == "reference"


@pytest.mark.parametrize("turn", [0, 1])
def test_no_test_inherits_a_choice(turn: int) -> None:
    assert backend.chosen() == "auto", turn
    backend.use("triton")


def test_building_networks_chooses_nothing_and_preparing_the_process_does() -> None:
    config, precision = small_config("Freeway"), choose("cpu", "fp32")
    build.networks(config, atari("Freeway"), precision)
    assert backend.chosen() == "auto"
    build.prepare(config, precision)
    assert backend.chosen() == "reference"


def test_a_launch_is_made_on_the_device_of_its_first_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []

    @contextmanager
    def device_of(x: torch.Tensor) -> Iterator[None]:
        order.append(x)
        yield
        order.append("before")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x = torch.zeros(1)
    assert backend._on_its_device(lambda *args: order.append(args) or 7)(x, 3) == 7
    assert order == [x, (x, 3), "before"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one_are_computed_there() -> None:
    logits_NC, u_N = torch.eye(5, device="cuda:1"), torch.full((5,), 0.5, device="cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(categorical.draw(logits_NC, u_N), reference.draw(logits_NC, u_N, 0.0))


def test_references_and_ops_load_no_triton() -> None:
    for path in Path(backend.__file__).parent.rglob("*.py"):
        if path.name != "kernel.py":
            top = {n.name for s in ast.parse(path.read_text()).body if isinstance(s, ast.Import) for n in s.names}
            modules = {s.module for s in ast.parse(path.read_text()).body if isinstance(s, ast.ImportFrom)}
            assert not {m for m in top | modules if m and m.split(".")[0] == "triton"}, path
