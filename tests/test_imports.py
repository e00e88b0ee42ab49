"""Which module may import which, read from the source."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, KERNELS = ROOT / "storm_fast", ROOT / "kernels"
# Not through the link: a kernel is storm_fast.kernels wherever its file is found.
SOURCES = sorted(
    path
    for top in (PACKAGE, KERNELS)
    for path in top.rglob("*.py")
    if top == KERNELS or path.relative_to(PACKAGE).parts[0] != "kernels"
)

BASE = ("config", "console", "errors")
ROOMS = {
    "config": ("errors",),
    "console": (),
    "errors": (),
    "kernels": (),
    "envs": ("config", "errors"),
    "runs": ("config", "errors"),
    "data": ("config", "errors", "envs.spec"),
    "model": ("config", "errors", "kernels", "data.replay"),  # of the replay the type of a batch
    "engine": ("config", "errors", "kernels", "envs", "data", "model", "runs"),
    "show": ("config", "errors", "kernels", "envs", "data", "model", "runs", "engine"),
}
"""What each room may import of storm_fast, beside itself. What is not here is a command: it may import all of them."""


def module_name(path: Path) -> str:
    """The dotted name of a source file; kernels/ is storm_fast.kernels."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "storm_fast" else ("storm_fast", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module) -> set[str]:
    """Every module that a file imports, wherever in it; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of(path: Path) -> set[str]:
    return imports(ast.parse(path.read_text(), str(path)))


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    if True:\n        import e as g\n    from h.i import j as k\n"
    assert imports(ast.parse(source)) == {"a.b", "c", "c.d", "e", "h.i", "h.i.j"}
    assert is_within("a.b", "a")
    assert not is_within("ab", "a")


def test_the_sources_are_found() -> None:
    names = {module_name(path) for path in SOURCES}
    kernels = {
        f"storm_fast.kernels.{name}"
        for name in (
            "attention",
            "categorical",
            "conv_relu",
            "first_conv",
            "lambda_return",
            "norm",
            "deconv_error",
            "twohot",
        )
    }
    assert {"storm_fast", "storm_fast.train", "storm_fast.config", "storm_fast.kernels", *kernels} <= names


def forbidden(module: str, imported: set[str]) -> list[str]:
    """What a module of storm_fast imports of storm_fast and may not."""
    room = module.split(".")[1] if "." in module else ""
    allowed = [f"storm_fast.{name}" for name in ((room, *ROOMS[room]) if room in ROOMS else ROOMS)]
    ours = (name for name in imported if is_within(name, "storm_fast") and name != "storm_fast")
    # `from storm_fast.data import replay` names storm_fast.data as well, which holds nothing of its own.
    bare = {name for name in imported if any(other.startswith(f"{name}.") for other in imported)}
    return sorted(name for name in ours if name not in bare and not is_within(name, *allowed))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_room_imports_what_lies_below_it_and_nothing_imports_a_command(path: Path) -> None:
    assert forbidden(module_name(path), imports_of(path)) == []


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("storm_fast.model.agent", "storm_fast.engine.learn"),
        ("storm_fast.model.agent", "storm_fast.data.demonstration"),
        ("storm_fast.envs.gym", "storm_fast.runs.run"),
        ("storm_fast.data.replay", "storm_fast.envs.native"),
        ("storm_fast.runs.run", "storm_fast.console"),
        ("storm_fast.engine.phases", "storm_fast.train"),
        ("storm_fast.kernels.norm.op", "storm_fast.errors"),
        ("storm_fast.sweep", "storm_fast.report"),
        ("storm_fast", "storm_fast.train"),
    ],
)
def test_an_import_of_what_lies_above_is_found(module: str, imported: str) -> None:
    package, name = imported.rsplit(".", 1)
    assert forbidden(module, imports(ast.parse(f"from {package} import {name}"))) == [imported]


def test_every_folder_of_the_package_is_a_room() -> None:
    folders = {
        path.relative_to(PACKAGE).parts[0]
        for path in SOURCES
        if path.parent not in (PACKAGE, KERNELS) and path.is_relative_to(PACKAGE)
    }
    assert folders | {"kernels"} == ROOMS.keys() - set(BASE)


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=module_name)
def test_kernels_import_torch_triton_and_each_other_alone(path: Path) -> None:
    allowed = ("torch", "triton", "storm_fast.kernels", *sys.stdlib_module_names)
    assert not [name for name in imports_of(path) if not is_within(name, *allowed)]


def test_config_imports_the_standard_library_and_the_errors_alone() -> None:
    allowed = ("storm_fast.errors", *sys.stdlib_module_names)
    found = imports_of(PACKAGE / "config.py")
    assert "storm_fast.errors" in found
    assert not [name for name in found if not is_within(name, *allowed)]


def test_the_package_itself_imports_neither_torch_nor_gymnasium() -> None:
    # A fresh interpreter: in this one both are loaded already.
    code = "import sys, storm_fast; print(*(m for m in ('torch', 'gymnasium') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_kernels_as_a_package_of_their_own_do_not_import() -> None:
    spec = importlib.util.spec_from_file_location("kernels", KERNELS / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"this folder is storm_fast\.kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_package_reaches_the_kernels_through_a_relative_link() -> None:
    link = PACKAGE / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")
    assert link.resolve() == KERNELS


@pytest.mark.parametrize(("given", "want"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_told_otherwise(given: str | None, want: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    code = "import sys, storm_fast, os; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.strip() == want
