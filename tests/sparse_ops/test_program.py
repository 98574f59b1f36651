"""Programs, and all that calls them, in many threads: the same bits, and memory that comes back. In processes of their own."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.build import Program, build
from tests import NO_TORCH
from tests.sparse_ops.many_threads import CALLS, CASES
from tests.sparse_ops.walk import module_of

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is resident")


def printed(script: str, **environment: str) -> str:
    script = f"{NO_TORCH}from tests.sparse_ops import many_threads\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()


@pytest.mark.parametrize("case", CASES)
def test_threads_at_once_get_the_bits_of_one_alone(case):
    assert printed(f"many_threads.run({case!r})") == str(CALLS)


@LINUX
@pytest.mark.parametrize("case", ["eager", "program"])
def test_memory_does_not_grow_with_new_sizes(case):
    assert float(printed(f"many_threads.soak({case!r})")) < 16


@LINUX
def test_threads_that_end_leave_no_memory_behind():
    assert float(printed("many_threads.burst()")) < 256


def doubled() -> Program:
    return build(module_of(lambda x: op.activation(x, "relu"), [np.zeros(0, "float32")], [("n", 4)]))


@pytest.fixture(scope="module")
def program() -> Program:
    return doubled()


X = np.array([[1, -2, 3, -4]], "float32")


def test_a_program_is_what_tvm_takes(program):
    """It is an executable: machines of one's own run it, and a library made of it is a program again."""
    x = tvm.runtime.tensor(X)
    for main in (program["main"], program, relax.VirtualMachine(program, tvm.cpu())["main"]):
        np.testing.assert_array_equal(main(x).numpy(), np.maximum(X, 0))


def test_a_library_is_a_program_again(tmp_path, program):
    file = str(tmp_path / "library.so")
    doubled().export_library(file)
    loaded = Program(tvm.runtime.load_module(file))
    np.testing.assert_array_equal(loaded["main"](tvm.runtime.tensor(X)).numpy(), np.maximum(X, 0))


def test_unknown_names_are_refused(program):
    with pytest.raises(ValueError, match="name: expected that of a function of this program, given 'forward'"):
        program["forward"]


def test_copies_are_itself_and_pickles_are_refused(program):
    assert copy.copy(program) is copy.deepcopy(program) is program
    with pytest.raises(TypeError, match="export_library"):
        pickle.dumps(program)


def test_a_call_that_fails_leaves_the_program_in_order(program):
    x = tvm.runtime.tensor(X)
    for _ in range(3):
        with pytest.raises(Exception, match=r"4"):
            program["main"](tvm.runtime.tensor(X[:, :3]))
        np.testing.assert_array_equal(program["main"](x).numpy(), np.maximum(X, 0))
