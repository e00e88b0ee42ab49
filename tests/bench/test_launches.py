"""The tables of launches in kernels/README.md are those that `python -m bench.launches` counts."""

import re
from pathlib import Path

import pytest
import torch

import storm_fast.kernels
from bench import launches

ROW = re.compile(r"^\| (\w+\.\w+(?:, backward)?) \| (\d+) \| (\d+) \|", re.MULTILINE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU counts what its profiler saw")
def test_the_tables_state_what_is_counted() -> None:
    text = (Path(storm_fast.kernels.__path__[0]) / "README.md").read_text()
    stated = {name: (int(eager), int(ours)) for name, eager, ours in ROW.findall(text)}
    assert stated == launches.tables()
