"""TVM is imported without torch where nobody has imported torch before, and torch can be imported afterwards."""

import subprocess
import sys


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_running_does_not_import_torch():
    script = "import sys; from sam3d_tvm import Pipeline; print('tvm' in sys.modules, 'torch' in sys.modules)"
    assert run(script) == "True False\n"


def test_torch_can_be_used_afterwards():
    script = """
from sam3d_tvm import Pipeline
import numpy as np, torch
import sparse_ops
coords = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 3]], dtype=torch.int32)
found, inverse = sparse_ops.functional.unique(coords)[:2]
print(type(found).__module__, found.tolist())
"""
    assert run(script) == "torch [[0, 1, 2, 3], [0, 1, 2, 4]]\n"


def test_torch_that_is_there_stays():
    assert run("import torch, sys; from sam3d_tvm import Pipeline; print(sys.modules['torch'] is torch)") == "True\n"
