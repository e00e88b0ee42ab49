"""Runs of the benchmarks as `--benchmark-json` has saved them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.instrument.guard import RESULTS
from bench.instrument.table import Case


class Run(NamedTuple):
    """One saved run."""

    machine: Mapping[str, Any]
    device: Mapping[str, Any]
    """what conftest.py adds: ceilings, states, what is absent or wrong"""
    commit: str
    date: str
    cases: list[Case]


def load(path: Path) -> Run:
    """Read what `pytest bench/ --benchmark-only --benchmark-json=FILE` wrote.

    Raises:
        SystemExit: where it is not such a file.
    """
    try:
        saved = json.loads(path.read_text())
        cases = [
            Case(b["group"], b["stats"]["median"], b["stats"]["iqr"], b["stats"]["rounds"], b["extra_info"])
            for b in saved["benchmarks"]
        ]
        commit = saved["commit_info"]
        known = commit["id"] != "unversioned"  # pytest-benchmark's word where there is no repository
        name = (commit["id"][:7] if known else "unknown") + (" with changes" if commit["dirty"] else "")
        device = {"failed": {}, "limits": {}, "remarks": []} | saved["device"]  # older runs lack these
        return Run(saved["machine_info"], device, name, saved["datetime"][:10], cases)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: want a file of `pytest bench/ --benchmark-only --benchmark-json`; got {path}: {error!r}")


def merge(parts: list[Path]) -> dict[str, Any]:
    """One saved run of several, of the same device and commit, that together are a whole.

    Raises:
        SystemExit: where they are not of one device and commit, or one is no saved run.
    """
    runs = [load(part) for part in parts]
    if len({(run.machine["device"], run.commit) for run in runs}) != 1:
        got = ", ".join(
            f"{part}: {run.machine['device']} at {run.commit}" for part, run in zip(parts, runs, strict=True)
        )
        sys.exit(f"error: want parts of one device and commit; got {got}")
    saved = [json.loads(part.read_text()) for part in parts]
    whole: dict[str, Any] = saved[0]
    whole["benchmarks"] = [case for part in saved for case in part["benchmarks"]]
    devices = [part["device"] for part in saved]
    what = ("absent", "wrong", "failed")
    whole["device"] |= {name: {k: v for run in runs for k, v in run.device[name].items()} for name in what}
    whole["device"] |= {
        name: [x for run in runs for x in run.device[name]] for name in ("troubles", "remarks", "at_work")
    }
    whole["device"] |= {"end": devices[-1]["end"], "quick": any(d["quick"] for d in devices)}
    return whole


def stored() -> list[Path]:
    """Every committed run."""
    return sorted(RESULTS.glob("*/benchmarks.json"))


def cases_of(run: Run, prefix: str) -> list[Case]:
    """Those whose operation begins so."""
    return [c for c in run.cases if c.operation.startswith(prefix)]


def kernel_cases(run: Run) -> list[Case]:
    """Those of the operations of kernels/, whose names begin with no word of their own."""
    return [c for c in run.cases if not c.operation.startswith(("step: ", "collect ", "scaling: "))]


def heading(run: Run) -> str:
    """Device, commit and versions in a line."""
    m = run.machine
    threads = "" if "cuda" in m else f", {m['instructions']}, {m['threads']} threads"
    return f"{m['device']}{threads}, torch {m['torch']}, commit {run.commit}, {run.date}"


def dtype(run: Run) -> str:
    """Of products, where a table's forms do not say."""
    return {"float32": "float32"}.get(run.machine.get("dtype", ""), "bf16")
