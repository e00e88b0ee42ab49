"""Attention at every size that it admits, in powers of 2: none may spill, on any card.

A run takes the longest on one card, where registers are shortest; `pytest tests/aot --whole` takes all.
"""

import pytest
import torch

from storm_fast.kernels.attention import kernel
from storm_fast.kernels.attention.op import LONGEST
from storm_fast.kernels.spec import budgets
from tests.aot.gate import ARCHITECTURES, SHARED_KIB, compile_launch, launches_of

SIZES = (16, 32, 64, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def call_all(dtype: torch.dtype, T: int, K: int) -> None:
    """Forward, backward, prefill, and the last step."""
    qkv_BT3HK, seed = torch.zeros(2, T, 3, 2, K, dtype=dtype), torch.zeros((), dtype=torch.int64)
    k_BHSK, v_BHSK = torch.zeros(2, 2, T, K, dtype=dtype), torch.zeros(2, 2, T, K, dtype=dtype)
    out_BTHK, lse_BHT = kernel.attend_fwd(qkv_BT3HK, seed, 0.1)
    kernel.attend_bwd(out_BTHK, qkv_BT3HK, seed, out_BTHK, lse_BHT, 0.1)
    kernel.prefill_fwd(qkv_BT3HK, k_BHSK, v_BHSK)
    kernel.step_fwd(qkv_BT3HK[:, 0], k_BHSK, v_BHSK, T - 1)


def test_the_sizes_reach_the_bound_of_the_op() -> None:
    assert max(SIZES) == LONGEST


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("T", SIZES)
def test_attention_of_any_size_compiles_without_spills(
    T: int, K: int, dtype: str, architecture: int, request: pytest.FixtureRequest
) -> None:
    is_short = T == LONGEST and dtype != "fp16" and architecture == 86
    if not is_short and not request.config.getoption("--whole", default=False):
        pytest.skip("compiled with --whole")
    for launch in launches_of(lambda: call_all(DTYPES[dtype], T, K)):
        compiled = compile_launch(launch, architecture)
        told = f"{launch.name} for sm_{architecture}, T {T}, K {K}, {dtype}: {compiled}"
        assert compiled.stack_bytes == 0, told
        assert compiled.spills == 0, told
        assert compiled.shared_bytes <= 1024 * SHARED_KIB[architecture], told
        least_dots = budgets()[launch.name].least_dots
        if least_dots is not None:
            least = least_dots(launch.given, launch.num_warps, architecture)
            assert compiled.tensor_core_instructions >= least, f"want at least {least} tensor-core instructions; {told}"
