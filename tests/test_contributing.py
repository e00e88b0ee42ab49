"""CONTRIBUTING.md names what exists: functions in the index of the paper, files, commands."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
INDEX = re.findall(r"^\| ((?:eqs?\.|sec\.|Table) [^|]+) \| `([^`]+)` \|$", TEXT, re.MULTILINE)


def found(dotted: str) -> Any:
    """The object of a dotted name: a module's, or an attribute of what it holds."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            here: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            here = getattr(here, name)
        return here
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize(("place", "name"), INDEX)
def test_the_index_of_the_paper_names_functions_that_exist(place: str, name: str) -> None:
    assert callable(found(name)), place


def test_the_index_has_every_equation_and_table_from_two_to_ten() -> None:
    def numbers(word: str) -> set[int]:
        places = [place.split(":")[0] for place, _ in INDEX if word in place]
        ranges = [re.findall(r"(\d+)[ab]? to (\d+)", place) for place in places]
        spans = {n for several in ranges for a, b in several for n in range(int(a), int(b) + 1)}
        return spans | {int(n) for place in places for part in [place.split(word)[1]] for n in re.findall(r"\d+", part)}

    assert numbers("eq") >= {2, 3, 5, 6, 7, 8, 9, 10}
    assert numbers("Table") >= set(range(3, 11))


def test_files_and_commands_that_it_names_exist() -> None:
    files = [name for name in re.findall(r"`([\w/.]+\.(?:py|md))`", TEXT) if "/" in name]
    assert len(files) >= 5
    assert [name for name in files if not (ROOT / name).is_file()] == []
    modules = re.findall(r"python -m (bench\.\w+)", TEXT)
    assert modules
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []
    targets = re.findall(r"^    make (\w+)", TEXT, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert len(targets) == 3
    assert [name for name in targets if f"\n{name}:" not in makefile] == []
