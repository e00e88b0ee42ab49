"""Which implementation runs where."""

import ast
from pathlib import Path

import pytest
import torch

from storm_fast import build
from storm_fast.kernels import backend, categorical
from storm_fast.kernels.categorical import reference
from tests.kernels.harness import using


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
            categorical.draw(torch.zeros(1, 3), torch.zeros(1))
    assert called == ["reference", "reference"]


def test_references_and_ops_load_no_triton() -> None:
    for path in Path(backend.__file__).parent.rglob("*.py"):
        if path.name != "kernel.py":
            top = {n.name for s in ast.parse(path.read_text()).body if isinstance(s, ast.Import) for n in s.names}
            modules = {s.module for s in ast.parse(path.read_text()).body if isinstance(s, ast.ImportFrom)}
            assert not {m for m in top | modules if m and m.split(".")[0] == "triton"}, path
