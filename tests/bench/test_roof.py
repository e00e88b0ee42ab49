"""The ledger of a step: what each call moves and multiplies."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.instrument.ceilings import Ceilings
from bench.roof import Phase, Row, _Ledger, ceilings_of

ROOT = Path(__file__).parents[2]
X = torch.zeros(6, 4)
ADAM = [[torch.zeros(5)] for _ in range(4)]


@pytest.mark.parametrize(
    ("call", "moved", "flops"),
    [
        (lambda: X + X, 2 * 96 + 96, 0),
        (lambda: X + X.new_zeros(1, 1).expand(6, 4), 96 + 4 + 96, 0),
        (lambda: X @ X.t(), 2 * 96 + 144, 2 * 6 * 6 * 4),
        (lambda: X.relu_(), 2 * 96, 0),
        (lambda: X.copy_(torch.empty(4)), 96 + 16, 0),
        (lambda: X.zero_(), 96, 0),
        (lambda: torch.mul(X, 2.0, out=torch.empty(6, 4)), 2 * 96, 0),
        (lambda: X.index_select(0, torch.empty(2, dtype=torch.int64).fill_(1)), 2 * 32 + 16, 0),
        (lambda: torch._foreach_copy_([X, X], [X.new_empty(6, 4), X.new_empty(6, 4)]), 4 * 96, 0),
        (lambda: X.view(4, 6).t(), 0, 0),
        (lambda: torch._fused_adam_(*ADAM, [], [torch.ones(())], **SETTINGS), 8 * 20 + 8, 0),
    ],
)
def test_bytes_and_operations_of_a_call(call: Callable[[], object], moved: int, flops: int) -> None:
    with _Ledger([]) as ledger:
        call()
    rows = [row for row in ledger.rows if row.name not in ("new_zeros", "fill_")]
    assert sum(row.bytes for row in rows) == moved
    assert sum(row.flops for row in rows) == flops


SETTINGS = {
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "weight_decay": 0.0,
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
}


def test_the_floor_is_the_longest_of_bytes_operations_and_launches() -> None:
    ceilings = Ceilings(1e3, 1e4, 1e4, 1.0, 0.5)
    rows = [Row("a", "", 1, 2000, 0), Row("b", "", 1, 0, 30_000), Row("c", "", 3, 1, 1)]
    assert [row.floor_s(ceilings) for row in rows] == [2.0, 3.0, 1.5]
    assert Phase(rows).floor_s(ceilings) == 6.5
    assert (Phase(rows).launches, Phase(rows).bytes, Phase(rows).flops) == (5, 2001, 30_001)


def test_the_stored_ceilings_of_an_h100_are_read() -> None:
    assert ceilings_of("nvidia-h100-80gb-hbm3").bytes_per_s == pytest.approx(2.96e12, rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would run what is only counted here")
def test_the_command_prints_a_ledger_with_as_many_launches_as_are_counted_elsewhere() -> None:
    def printed(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    ledger = printed("bench.roof", "tiny", "--shown", "12")
    rows = dict(re.findall(r"^\| (\w+) \| (\d+) \| [\d,.]+ \| [\d,.]+ \| [\d.]+ \|$", ledger, re.MULTILINE))
    counts = dict(
        re.findall(r"^\| (\w+) \| \d+ \| (\d+) \|$", printed("bench.launches", "phases", "tiny"), re.MULTILINE)
    )
    assert rows.keys() == {"act", "append", "model", "imagine", "agent"}
    assert {name: abs(int(rows[name]) - int(counts[name])) <= 1 for name in rows} == dict.fromkeys(rows, True)
    assert re.search(r"us +\d+ x +[\d.]+ MB +[\d.]+ GFLOP  _fused_adam_", ledger)
