"""Kernels compiled for GPUs that need not be there: `pytest tests/aot`, a process of its own.

Triton decides when it is imported whether a process interprets or compiles; tests/kernels may interpret.
"""

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--whole` also compiles what a run leaves out for its length."""
    parser.addoption(
        "--whole",
        action="store_true",
        help="compile all dtypes, architectures and sizes",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where tests/kernels, in the same process, have chosen the interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        for item in items:
            if "tests/aot" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="kernels are interpreted here; run `pytest tests/aot` alone"))
