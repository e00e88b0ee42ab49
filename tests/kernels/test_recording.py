"""The released code's recording, computed with the kernels; tests/golden has it without."""

from pathlib import Path
from typing import Any

import pytest

from storm_fast.kernels.attention import kernel
from tests.golden import check
from tests.kernels.harness import DEVICE

PREFIX = Path(check.__file__).parent / "released_code_small"


def test_the_kernels_reproduce_every_recorded_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    attend_fwd = kernel.attend_fwd

    def launched(*arguments: Any) -> Any:
        launches.append(arguments)
        return attend_fwd(*arguments)

    monkeypatch.setattr(kernel, "attend_fwd", launched)
    lines = list(check.check(PREFIX, check.Form(DEVICE, kernels="triton")))
    assert len(lines) >= 300
    assert [line for line in lines if not line.passed] == []
    assert launches
