"""What a commit or a wheel leaves out is named from the root: a package may share a name with the folder of runs."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {path.name for path in (ROOT / "storm_fast").rglob("*") if path.is_dir()} - {"__pycache__"}


def patterns(file: str) -> list[str]:
    """What `file` leaves out, as gitignore patterns."""
    text = (ROOT / file).read_text()
    if file == ".gitignore":
        return [line for line in text.splitlines() if line and not line.startswith("#")]
    scikit_build = tomllib.loads(text)["tool"]["scikit-build"]
    return [*scikit_build["sdist"]["exclude"], *scikit_build["wheel"]["exclude"]]


@pytest.mark.parametrize("file", [".gitignore", "pyproject.toml"])
def test_no_room_is_left_out_by_its_name(file: str) -> None:
    """A pattern without a slash before its last character holds in every folder."""
    everywhere = {pattern.rstrip("/") for pattern in patterns(file) if "/" not in pattern.rstrip("/")}
    assert "runs" in ROOMS
    assert not everywhere & ROOMS
