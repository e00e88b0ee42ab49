"""The tables of launches in kernels/README.md are those that `python -m bench.launches` prints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\w+\.\w+(?:, backward)?) \| (\d+) \| (\d+) \|", re.MULTILINE)


def counted(*words: str) -> str:
    """What the command prints."""
    # In a process of its own: this one may interpret the kernels, and then they are not launched.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.launches", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU counts what its profiler saw")
def test_the_tables_state_what_is_counted() -> None:
    printed = counted()
    assert len(ROW.findall(printed)) > 20
    assert sorted(ROW.findall((ROOT / "kernels" / "README.md").read_text())) == sorted(ROW.findall(printed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU counts what its profiler saw")
def test_the_launches_of_a_phase_do_not_grow_unseen() -> None:
    most = {"act": 68, "append": 6, "model": 302, "imagine": 538, "agent": 116}
    printed = counted("phases", "--small")
    rows = re.findall(r"^\| (\w+) \| \d+ \| (\d+) \|", printed, re.MULTILINE)
    found = {phase: int(count) for phase, count in rows}
    assert found.keys() == most.keys()
    assert {phase: count for phase, count in found.items() if count > most[phase]} == {}
