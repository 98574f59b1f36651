"""Imports point down only: sam3d_tvm -> sparse_ops -> tir_kernels; torch only where a model is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "tir_kernels": {"sparse_ops", "sam3d_tvm", "torch", "tvm.relax"},
    "sparse_ops": {"sam3d_tvm"},
    "sam3d_tvm": set(),
}


def imports(file: Path) -> set[str]:
    """Absolute names that a file imports, `from a import b` as both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
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
