"""Threads of the kernels: every core that the process may use, unless a call or the environment says otherwise.

TVM keeps a pool of workers for each thread that calls kernels. A pool starts at the first call, with TVM_NUM_THREADS workers;
without it TVM takes half of the cores that the machine has, whichever of them the process may use.
"""

import operator
import os
from pathlib import Path

import tvm

VARIABLE = "TVM_NUM_THREADS"
BIG_CORES = 1  # TVM's affinity mode `kBig`, its default
ALL = 1 << 20  # more workers than a pool can have: TVM takes as many as there are


def use_available_cores() -> None:
    """Let the pools that start from now on have a worker for every available core. `TVM_NUM_THREADS` wins if it is set.

    Workers are not tied to cores: TVM would tie them, and the calling thread, to the first cores of the machine, of which this
    process may have others, and which every process would choose. `TVM_BIND_THREADS` wins if it is set.
    """
    os.environ.setdefault(VARIABLE, str(available_cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")


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


def threads() -> int:
    """Threads that kernels called from this thread use."""
    return int(tvm.get_global_func("runtime.NumThreads")())


def set_threads(count: int) -> None:
    """Use `count` threads for kernels called from this thread, and from threads that call their first kernel later.

    Raises ValueError unless `count` is an int from 1 to the number of workers that this thread's pool started with: that of the
    available cores, or `TVM_NUM_THREADS`, or the count of an earlier call in another thread.
    """
    try:
        number = 0 if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"count: expected an int of at least 1, given {count!r}")
    count = number
    configure = tvm.get_global_func("runtime.config_threadpool")
    before = threads()
    configure(BIG_CORES, ALL)
    most = threads()
    configure(BIG_CORES, count if count <= most else before)
    if count > most:
        raise ValueError(
            f"count: expected at most {most}, the threads that the pool started with, given {count}; "
            f"set {VARIABLE}={count} in the environment before the process starts"
        )
    os.environ[VARIABLE] = str(count)
