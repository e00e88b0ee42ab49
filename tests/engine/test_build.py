"""What a configuration sets for the process."""

from dataclasses import replace

import pytest
import torch

from storm_fast.engine import build
from storm_fast.engine.precision import Precision
from tests.small import small_config


@pytest.mark.parametrize(("dtype", "want"), [(torch.float32, "ieee"), (torch.bfloat16, "tf32")])
def test_float32_on_a_gpu_is_multiplied_as_float32(dtype: torch.dtype, want: str) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.conv.fp32_precision = matmul.fp32_precision = "tf32"
    build.prepare(replace(small_config(), kernels="reference"), Precision(torch.device("cuda"), dtype))
    assert (cudnn.conv.fp32_precision, matmul.fp32_precision) == (want, want)


@pytest.mark.gpu
def test_a_float32_convolution_on_a_gpu_is_as_exact_as_float32() -> None:
    build.prepare(replace(small_config(), kernels="reference"), Precision(torch.device("cuda"), torch.float32))
    g = torch.Generator("cuda").manual_seed(1)
    x_NPYX = torch.randn(8, 64, 16, 16, generator=g, device="cuda")
    weight = torch.randn(64, 64, 4, 4, generator=g, device="cuda")
    exact_NPYX = torch.nn.functional.conv2d(x_NPYX.double(), weight.double())
    error = torch.nn.functional.conv2d(x_NPYX, weight) - exact_NPYX
    # 1,024 summands round to about 32 times 6e-8 of a term; operands of 11 bits would err by 2e-4 of the sum.
    assert error.norm() <= 1e-5 * exact_NPYX.norm()
