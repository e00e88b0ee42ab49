"""Kernels run on the GPU where there is one, and in Triton's interpreter elsewhere.

The interpreter is chosen by an environment variable that Triton reads once, when it is imported.
"""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "something imported Triton before its interpreter could be chosen"
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.kernels import bf16_interpreter

    bf16_interpreter.install()

from storm_fast.kernels import backend

if torch.cuda.is_available():
    # Or cuDNN rounds the operands of the references' float32 convolutions to TF32, beyond every tolerance here.
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.fixture
def triton() -> Iterator[None]:
    """The public functions run the kernels, on a CPU too."""
    with backend.using("triton"):
        yield
