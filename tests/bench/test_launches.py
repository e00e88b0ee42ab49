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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU counts what its profiler saw")
def test_the_tables_state_what_is_counted() -> None:
    # In a process of its own: this one may interpret the kernels, and then they are not launched.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.launches"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert len(ROW.findall(printed)) > 20
    assert sorted(ROW.findall((ROOT / "kernels" / "README.md").read_text())) == sorted(ROW.findall(printed))
