"""Where benchmarks run, and what each operation is timed as."""

from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IS_GPU = DEVICE.type == "cuda"

OPERATION = ("triton", "compiled", "reference")
"""The forms of every operation of kernels/: the kernel, torch.compile of the definition, the definition."""


def in_forms(*names: str) -> Any:
    """A case for each form; those of one operation are measured together, when the first of them runs."""
    return pytest.mark.parametrize("form", names)


def skipped(quick: bool, is_last_shape: bool) -> dict[str, str]:
    """The forms of an operation that do not run here, and why."""
    why = {"compiled": "--quick does not wait for a compiler", "flex": "likewise"} if quick else {}
    if IS_GPU:
        return why
    if not is_last_shape:  # it would compile longer than all the rest takes
        why |= {"compiled": "on a CPU only the last shape of each operation is compiled"}
    return why | {"triton": "Triton's kernels need a GPU", "flex": "FlexAttention is timed on a GPU"}
