"""Settings of every test: repeatable hypothesis examples, and no GPU tests where there is no GPU."""

import storm_fast  # noqa: F401  # before torch: it tells OpenMP's threads how to wait

# isort: split
import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from storm_fast.kernels import backend

# On a GPU a product has the same bits every time; read once, when cuBLAS starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

hypothesis.settings.register_profile("storm_fast", derandomize=True, deadline=None, max_examples=20)
hypothesis.settings.register_profile(
    "first_failure",  # for tests/mutations.py, which does not ask for the smallest one
    hypothesis.settings.get_profile("storm_fast"),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("storm_fast")


@pytest.fixture(autouse=True)
def _kernels_as_before() -> Iterator[None]:
    """The choice of kernels holds for the process, so a test that makes one must not make it for the next."""
    with backend.using("auto"):  # whatever a fixture of a whole module has chosen
        yield


@pytest.fixture(autouse=True)
def _products_as_before() -> Iterator[None]:
    """How a GPU multiplies, which `build.prepare` sets, holds for the process too."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` on a machine without CUDA."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
