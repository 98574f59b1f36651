"""Processes that are forked after kernels ran, when the pool's workers are gone: the same bits, and nothing waits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import NO_TORCH

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX systems fork")
SECONDS = 300  # after which what hangs is ended

# What scripts begin with: `work()` names the bits of an eager call, whose kernels are parallel loops.
WORK = f"""
import hashlib, os, signal, sys, threading, time
os.register_at_fork(after_in_child=lambda: signal.alarm({SECONDS}))
import numpy as np
import sparse_ops
from sparse_ops import functional as F
from tir_kernels.cpu.threads import threads

x, weight = (np.random.default_rng(i).standard_normal((4000, 32), dtype="float32") for i in range(2))

def work():
    return hashlib.sha256(F.linear(x, weight[:48].copy()).tobytes()).hexdigest()

def forked(task):
    "What `task` prints in a child, and how it ends."
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        task()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(script: str, torch: bool = False, **environment: str) -> list[str]:
    """The lines that a script prints."""
    environment = os.environ | {"TVM_NUM_THREADS": "3"} | environment
    done = subprocess.run(
        [sys.executable, "-c", ("" if torch else NO_TORCH) + WORK + script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=SECONDS,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("wait", [0, 1], ids=["workers spin", "workers sleep"])
def test_a_child_computes_the_same_bits(wait):
    parent, child, nested, after = run(f"""
print(work())
time.sleep({wait})
def task():
    print(work())
    forked(lambda: print(work()))
forked(task)
print(work())
""")
    assert parent == child == nested == after


def test_a_child_tells_how_many_threads_it_has():
    """The thread that goes on after a fork has none beside it, and asks in vain; a new one has all."""
    before, *child, new, after = run("""
there = work()
print(threads())
def task():
    print(threads())
    for count in (1, 2):
        try:
            sparse_ops.set_threads(count)
        except ValueError as error:
            print(error)
    print(threads())
    os.environ["TVM_NUM_THREADS"] = "3"
    new = threading.Thread(target=lambda: print(threads(), work() == there))
    new.start()
    new.join()
forked(task)
print(threads())
""")
    assert child == [
        "1",
        "count: expected 1, as the workers did not survive the fork that this process began with, given 2; "
        "start processes by multiprocessing's 'spawn', or call kernels from a new thread",
        "1",
    ]
    assert new == f"{before} True" and after == before


def test_a_process_that_forks_before_any_use_keeps_its_threads():
    child, parent = run("forked(lambda: print(threads(), work())); print(threads(), work())")
    assert child == parent


def test_a_machine_of_ones_own_runs_in_a_child():
    """The program was compiled here, so that no function of ours runs before the fork."""
    parent, child = run(
        """
import tvm
from tvm import relax
from sparse_ops import op
from sparse_ops.build import build
from tests.sparse_ops.walk import module_of
module = module_of(lambda x: op.softmax(x), [x], [("n", 32)])
main = relax.VirtualMachine(tvm.compile(module, tvm.target.Target("llvm")), tvm.cpu())["main"]
digest = lambda: hashlib.sha256(main(tvm.runtime.tensor(x)).numpy().tobytes()).hexdigest()
print(digest())
forked(lambda: print(digest()))
""",
        torch=True,
    )
    assert parent == child


def test_a_fork_while_other_threads_compute_and_compile():
    """Locks that other threads hold at the fork are free in the child, which compiles something itself."""
    lines = run(
        """
from tir_kernels import script
from sparse_ops.eager import cache
going = True
def busy(seed):
    while going:
        F.linear(x[: 100 + seed], weight)
others = [threading.Thread(target=busy, args=(i,)) for i in range(3)]
there = work()
for thread in others:
    thread.start()
for _ in range(20):
    forked(lambda: print(work() == there))
held = threading.Event()
def hold():
    with script._parsing, cache._lock:
        held.set()
        while going:
            time.sleep(0.01)
holder = threading.Thread(target=hold)
holder.start()
held.wait()
forked(lambda: print(F.linear(x[:3, :5].copy(), weight[:, :5].copy()).shape))
going = False
""",
        SPARSE_OPS_CACHE="off",
    )
    assert lines == ["True"] * 20 + ["(3, 4000)"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path, method):
    file = tmp_path / "main.py"
    file.write_text(
        NO_TORCH
        + WORK
        + f"""
import multiprocessing
def task(_):
    return work(), threads()
if __name__ == "__main__":
    print(work(), threads())
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        for result in pool.map(task, range(4)):
            print(*result)
"""
    )
    environment = os.environ | {"TVM_NUM_THREADS": "3", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    parent, *children = done.stdout.split("\n")[:-1]
    assert children == [parent if method != "fork" else f"{parent.split()[0]} 1"] * 4


def test_workers_of_a_data_loader():
    pytest.importorskip("torch")
    parent, *children = run(
        """
import torch
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return work()
print(work())
for batch in torch.utils.data.DataLoader(Data(), batch_size=1, num_workers=2, multiprocessing_context="fork"):
    print(*batch)
""",
        torch=True,
    )
    assert children == [parent] * 4
