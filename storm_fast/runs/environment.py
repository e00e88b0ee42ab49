"""What a run runs on: commit, versions, devices. Kept in env.json and printed by the doctor."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Collect what env.json holds."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    packages = ("storm-fast", "torch", "triton", "numpy", "gymnasium", "ale-py", "safetensors")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    named = os.environ.get("STORM_COMMIT")
    cuda = torch.cuda.is_available()
    return {
        "command": sys.argv,
        # Where it is named, a repository around the package is another one.
        "commit": named or git("rev-parse", "HEAD"),
        "dirty_diff": None if named else git("diff", "HEAD"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "driver": _driver() if cuda else None,
    }


def _driver() -> str | None:
    """The NVIDIA driver's version."""
    import pynvml  # here, since machines without a GPU have no driver library to load

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
