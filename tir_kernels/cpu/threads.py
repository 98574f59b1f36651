"""Threads of the kernels: every core that the process may use, unless a call or the environment says otherwise.

TVM keeps a pool of workers for each thread that calls kernels. A pool starts at the first call, with TVM_NUM_THREADS workers;
without it TVM takes half of the cores that the machine has, whichever of them the process may use.

A fork copies the calling thread alone: in the child that thread's workers are gone, and a kernel would wait for them for ever.
So there it runs kernels by itself, with the same bits; threads that the child starts have pools of their own, of all cores.
"""

import operator
import os
import threading
from pathlib import Path

import tvm

VARIABLE = "TVM_NUM_THREADS"
BINDING = "TVM_BIND_THREADS"
BIG_CORES = 1  # TVM's affinity mode `kBig`, its default
SHARED_CORES = -3  # and `kSpecifyThreadShareAllCore`, whose list of cores also says how many threads there are
ALL = 1 << 20  # more workers than a pool can have: TVM takes as many as there are


def use_available_cores() -> None:
    """Let the pools that start from now on have a worker for every available core. `TVM_NUM_THREADS` wins if it is set.

    Workers are not tied to cores: TVM would tie them, and the calling thread, to the first cores of the machine, of which this
    process may have others, and which every process would choose. `TVM_BIND_THREADS` wins if it is set.
    """
    os.environ.setdefault(VARIABLE, str(available_cores()))
    os.environ.setdefault(BINDING, "0")


def available_cores(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores this process may use at a time: its affinity and the quota of its container, rounded down, at least 1.

    `membership` and `mount`: where Linux tells the control group (version 2) of the process, and where groups lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quotas(membership, mount)]))


def _quotas(membership: Path, mount: Path) -> list[int]:
    """Whole cores that the quota of each control group around this process allows."""
    try:
        lines = membership.read_text().splitlines()
        own = next(mount / line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    except (OSError, StopIteration):  # not Linux, or control groups of version 1
        return []
    quotas = []
    for group in (own, *own.parents):
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except OSError:  # the root group has none, nor has a folder that is no group
            continue
        if quota != "max":
            quotas.append(int(quota) // int(period))
    return quotas


_configure = tvm.get_global_func("runtime.config_threadpool")
_used = False  # whether pools may have started in this process
_alone: int | None = None  # the thread that a fork left without its workers


def note_use() -> None:
    """Kernels are compiled or called in this process: from now on a fork may find a pool."""
    global _used
    _used = True


def _leave_workers() -> None:
    """In the child of a fork: this thread's workers did not survive, so it does without."""
    global _alone
    if not _used:
        return
    _alone = threading.get_ident()
    bound = os.environ.get(BINDING)
    os.environ[BINDING] = "0"  # or TVM would bind the threads that are gone
    _configure(SHARED_CORES, 1, ["0"])
    if bound is None:
        del os.environ[BINDING]
    else:
        os.environ[BINDING] = bound


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_workers)


def threads() -> int:
    """Threads that kernels called from this thread use."""
    note_use()
    return int(tvm.get_global_func("runtime.NumThreads")())


def set_threads(count: int) -> None:
    """Use `count` threads for kernels called from this thread, and from threads that call their first kernel later.

    Raises ValueError unless `count` is an int from 1 to the number of workers that this thread's pool started with: that of the
    available cores, or `TVM_NUM_THREADS`, or the count of an earlier call in another thread; and for more than 1 in a process
    forked from one that used kernels, in the thread that goes on there.
    """
    try:
        number = 0 if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"count: expected an int of at least 1, given {count!r}")
    count = number
    note_use()
    if threading.get_ident() == _alone:
        if count > 1:
            raise ValueError(
                f"count: expected 1, as the workers did not survive the fork that this process began with, given {count}; "
                "start processes by multiprocessing's 'spawn', or call kernels from a new thread"
            )
    else:
        before = threads()
        _configure(BIG_CORES, ALL)
        most = threads()
        _configure(BIG_CORES, count if count <= most else before)
        if count > most:
            raise ValueError(
                f"count: expected at most {most}, the threads that the pool started with, given {count}; "
                f"set {VARIABLE}={count} in the environment before the process starts"
            )
    os.environ[VARIABLE] = str(count)
