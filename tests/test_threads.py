"""Threads: all that the process may use, and a call to choose. In processes of their own, as a pool starts only once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import NO_TORCH
from tir_kernels.cpu.threads import available_cores, set_threads

ROOT = Path(__file__).parent.parent
SETTINGS = ("TVM_NUM_THREADS", "TVM_BIND_THREADS")


def run(script: str, **environment: str) -> str:
    """What `script` prints, run with none of TVM's settings but those given."""
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH + script], capture_output=True, text=True, cwd=ROOT, env={**inherited, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_available_cores_without_a_setting():
    assert run("import sparse_ops; print(sparse_ops.threads())") == str(available_cores())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can restrict a process to cores")
def test_a_process_stays_on_its_cores():
    script = (
        "import os; last = max(os.sched_getaffinity(0)); os.sched_setaffinity(0, {last})\n"
        "from tir_kernels.cpu.threads import threads; print(threads(), os.sched_getaffinity(0) == {last})"
    )
    assert run(script) == "1 True"


def test_the_environment_wins_and_bounds_the_choice():
    script = (
        "from tir_kernels.cpu.threads import threads, set_threads; print(threads())\n"
        "try:\n    set_threads(2)\nexcept ValueError as error:\n    print(threads(), error)"
    )
    message = "count: expected at most 1, the threads that the pool started with, given 2; set TVM_NUM_THREADS=2"
    first, second = run(script, TVM_NUM_THREADS="1").splitlines()
    assert first == "1" and second.startswith(f"1 {message}")


def test_fewer_threads_and_more_again_and_threads_that_start_later_follow():
    script = (
        "import threading; from tir_kernels.cpu.threads import threads, set_threads\n"
        "for count in (1, 3, 2):\n    set_threads(count); print(threads())\n"
        "later = threading.Thread(target=lambda: print(threads())); later.start(); later.join()"
    )
    assert run(script, TVM_NUM_THREADS="3").split() == ["1", "3", "2", "2"]


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "2", None], ids=repr)
def test_wrong_counts_are_named(count):
    with pytest.raises(ValueError, match=f"count: expected an int of at least 1, given {count!r}"):
        set_threads(count)


@pytest.mark.parametrize(
    "inner, outer, cores",
    [("max 100000", "max 100000", 64), ("250000 100000", "max 100000", 2), ("max 100000", "50000 100000", 1)],
)
def test_the_quota_of_a_container(tmp_path, monkeypatch, inner, outer, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    group = tmp_path / "mount" / "outer" / "inner"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(inner + "\n")
    (group.parent / "cpu.max").write_text(outer + "\n")
    (tmp_path / "cgroup").write_text("1:name=other:/\n0::/outer/inner\n")
    assert available_cores(tmp_path / "cgroup", tmp_path / "mount") == cores


def test_a_system_without_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 7}, raising=False)
    assert available_cores(tmp_path / "missing", tmp_path) == 2
