"""Threads of torch beside ours: idle workers of OpenMP sleep once an op of ours has run, and nothing else changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import json, os, sys, time
import torch
torch.set_num_threads(int(sys.argv[1]))
import sparse_ops.torch.threads as threads
from sparse_ops.torch import ops
coords = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)
if sys.argv[2] == "kernel":
    torch.ops.sparse_ops.submanifold_map(coords)
large = torch.zeros(1 << 20)
spent = []
for _ in range(9):
    torch.relu(large)
    before = time.process_time()
    time.sleep(0.005)
    spent.append(time.process_time() - before)
asleep = len(threads._asleep)
child = None
if hasattr(os, "fork") and sys.argv[1] == "1":
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(len(threads._asleep) + threads._done_for).encode())
        os._exit(0)
    child = int(os.read(read, 16))
print(json.dumps({"spent": min(spent), "asleep": asleep, "threads": torch.get_num_threads(), "child": child}))
"""


def run(team: int, what: str, **environment: str) -> dict:
    """Of a process of its own, which ran a kernel of ours or none: seconds that idle workers spent after an operation."""
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    arguments = [sys.executable, "-c", SCRIPT, str(team), what]
    done = subprocess.run(arguments, capture_output=True, text=True, env=clean | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MAPS = Path("/proc/self/maps")
gnu = pytest.mark.skipif(
    not MAPS.exists() or "libgomp" not in MAPS.read_text(), reason="torch has another OpenMP than GNU's here"
)


@gnu
def test_idle_workers_of_torch_sleep_beside_our_kernels():
    found = run(2, "kernel")
    assert found["spent"] < 0.0005
    assert found["asleep"] >= 1
    assert found["threads"] == 2  # torch has as many as before


@gnu
def test_without_our_kernels_torch_is_left_alone():
    assert run(2, "none")["asleep"] == 0


@pytest.mark.parametrize(("team", "environment"), [(1, {}), (2, {"OMP_WAIT_POLICY": "active"}), (2, {"GOMP_SPINCOUNT": "10"})])
def test_nothing_is_done_where_there_is_nothing_to_do_or_somebody_decided(team, environment):
    found = run(team, "kernel", **environment)
    assert found["asleep"] == 0
    assert found["child"] in (None, 1)


def test_it_costs_nothing_the_second_time(monkeypatch):
    from sparse_ops.torch import threads

    threads.let_idle_workers_sleep()
    monkeypatch.setattr(threads, "_sleeper", lambda: pytest.fail("another thread was started"))
    threads.let_idle_workers_sleep()
    assert torch.get_num_threads() >= 1
