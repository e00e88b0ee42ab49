"""The list of faults: each can be made, and the run tests the copy that has it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from storm_fast.kernels.spec import folders
from tests import mutations


@pytest.mark.parametrize("name", mutations.FAULTS)
def test_a_fault_changes_one_line_of_its_kernel_to_another_that_is_python(name: str) -> None:
    fault = mutations.FAULTS[name]
    text = (mutations.ROOT / "kernels" / fault.op / "kernel.py").read_text()
    wrong = fault.put(text)
    ((before, after),) = [x for x in zip(text.splitlines(), wrong.splitlines(), strict=True) if x[0] != x[1]]
    assert before.split("  # mutation ")[0].strip() != after.strip()
    ast.parse(wrong)


def test_every_place_that_is_marked_has_a_fault() -> None:
    for op in folders():
        marked = re.findall(
            r"# mutation (\S+)$", (mutations.ROOT / "kernels" / op / "kernel.py").read_text(), re.MULTILINE
        )
        assert set(marked) == {fault.place for fault in mutations.FAULTS.values() if fault.op == op}


def test_a_run_imports_the_copy_though_a_finder_of_an_editable_install_comes_first(tmp_path: Path) -> None:
    package = tmp_path / "copy" / "storm_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "test_it.py").write_text("import storm_fast\n\ndef test_it():\n    assert storm_fast.__file__\n")
    # As scikit-build's: at the front of sys.meta_path before anything of ours runs, and it knows another folder.
    (tmp_path / "_editable_skbc_storm_fast.py").write_text(
        f"""
import importlib.util, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "storm_fast":
            return importlib.util.spec_from_file_location(name, {str(mutations.ROOT / "storm_fast/__init__.py")!r})

sys.meta_path.insert(0, Finder())
"""
    )
    (tmp_path / "sitecustomize.py").write_text("import _editable_skbc_storm_fast")
    command = [sys.executable, "-c", mutations.RUN, str(package.parent), "-q", "-p", "no:cacheprovider", "test_it.py"]
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
