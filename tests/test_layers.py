"""Imports point down only: training -> sam3d_tvm -> sparse_ops -> tir_kernels; torch only where a model is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "tir_kernels": {"training", "sparse_ops", "sam3d_tvm", "torch", "tvm.relax"},
    "sparse_ops": {"training", "sam3d_tvm"},
    "sam3d_tvm": {"training"},
    "training": {"benchmarks", "tests"},
}


def imports(file: Path) -> set[str]:
    """Absolute names that a file imports, `from a import b` as both a and a.b; relative imports count as absolute ones."""
    names, package = set(), file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_down(package):
    for file in (ROOT / package).rglob("*.py"):
        for name in imports(file):
            bad = [f for f in FORBIDDEN[package] if name == f or name.startswith(f + ".")]
            assert not bad, f"{file.relative_to(ROOT)} imports {name}"


def test_running_never_needs_torch():
    """With torch made impossible to import (tvm-ffi takes it where it can), everything loads and an op runs."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, sparse_ops, sparse_ops.nn, sam3d_tvm.cli\n"
        "print(sparse_ops.functional.unique(np.zeros((2, 4), 'int32'))[1].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[0, 0]\n", done.stderr


# Parts of a package that know less than the package: a file or folder, and what nothing in it imports.
SECTIONS = {
    "tir_kernels/spec": {"tir_kernels.cpu", "tir_kernels.cuda", "tir_kernels.dispatch", "tir_kernels.layout", "tvm"},
    "tir_kernels/layout.py": {"tir_kernels.cpu", "tir_kernels.cuda", "tir_kernels.dispatch"},
    "tir_kernels/guards.py": {"tir_kernels.cpu", "tir_kernels.cuda", "tir_kernels.dispatch"},
    "tir_kernels/cpu": {"tir_kernels.dispatch", "tir_kernels.cuda"},
    "sparse_ops/op": {
        "tir_kernels.cpu",
        "tir_kernels.cuda",
        *(f"sparse_ops.{part}" for part in ("transform", "build", "nn", "eager", "deploy", "torch", "testing")),
    },
    "sparse_ops/transform": {f"sparse_ops.{part}" for part in ("build", "nn", "eager", "deploy", "torch", "testing")},
    "sparse_ops/nn": {f"sparse_ops.{part}" for part in ("eager", "deploy", "torch", "testing")},
    "sparse_ops/eager": {f"sparse_ops.{part}" for part in ("nn", "deploy", "torch", "testing")},
    "sparse_ops/deploy": {"sparse_ops.testing"},
}


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_know_no_more_than_they_need(section):
    path = ROOT / section
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        for name in imports(file):
            bad = [f for f in SECTIONS[section] if name == f or name.startswith(f + ".")]
            assert not bad, f"{file.relative_to(ROOT)} imports {name}"


def test_the_instruction_set_is_asked_for_in_one_place():
    """The dispatch table; and what schedules plain TIR for CPUs."""
    allowed = ("tir_kernels/cpu/", "tir_kernels/dispatch.py", "sparse_ops/transform/cpu/")
    for package in FORBIDDEN:
        for file in (ROOT / package).rglob("*.py"):
            place = file.relative_to(ROOT).as_posix()
            assert place.startswith(allowed) or "Isa.of(" not in file.read_text(), place
