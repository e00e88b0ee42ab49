"""Which module may import which, read from the source."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, KERNELS = ROOT / "storm_fast", ROOT / "kernels"
SOURCES = sorted(PACKAGE.glob("*.py")) + sorted(KERNELS.rglob("*.py"))


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
            "frames",
            "lambda_return",
            "norm",
            "reconstruction",
            "twohot",
        )
    }
    assert {"storm_fast", "storm_fast.train", "storm_fast.config", "storm_fast.kernels", *kernels} <= names


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_imports_train(path: Path) -> None:
    assert not [name for name in imports_of(path) if is_within(name, "storm_fast.train")]


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
