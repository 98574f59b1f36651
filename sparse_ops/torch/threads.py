"""One rule for the threads of torch and of our kernels: both have all cores, and who has nothing to do sleeps.

Each has a pool of its own. GNU's OpenMP, under torch, lets idle workers spin for some ten milliseconds after each operation,
in which a kernel of ours finds a core taken; where the two take turns, as in a network of convolutions and norms, most of the
time goes there. Workers sleep at once if OMP_WAIT_POLICY=passive is set before torch is imported. Later nothing but the number
of OpenMP's threads decides: above that of the cores it spins next to nothing. So here are threads that have used torch once,
with their teams, and sleep. They cost no time; an operation of torch that uses several threads takes some 50 us longer, as it
has to wake them.

Our pool's idle workers yield their cores while they wait.
"""

import os
import threading
from pathlib import Path

import torch

_lock = threading.Lock()
_asleep: list[threading.Thread] = []
_done_for = 1  # torch's number of threads that there are enough for


def let_idle_workers_sleep() -> None:
    """Make OpenMP's idle workers sleep, if it is GNU's and nobody has decided how they wait. Costs nothing the next time."""
    global _done_for
    team = torch.get_num_threads()
    if team <= _done_for:
        return
    with _lock:
        if team <= _done_for:
            return
        _done_for = team
        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() and _is_gnu():
            cores = len(os.sched_getaffinity(0))
            while 1 + (team - 1) * (1 + len(_asleep)) <= cores:  # OpenMP counts the workers of every thread's team
                _asleep.append(_sleeper())


def _is_gnu(maps: Path = Path("/proc/self/maps")) -> bool:
    """Whether this process has loaded libgomp, on Linux."""
    try:
        return "libgomp" in maps.read_text()
    except OSError:
        return False


def _sleeper() -> threading.Thread:
    """A thread that has a team of OpenMP's and sleeps until the process ends."""
    ready = threading.Event()

    def work() -> None:
        torch.relu(torch.zeros(1 << 20, device="cpu"))  # large enough for all threads of a team
        ready.set()
        threading.Event().wait()

    thread = threading.Thread(target=work, daemon=True, name="sparse_ops.torch.threads")
    thread.start()
    ready.wait()
    return thread


def _forget() -> None:
    """In the child of a fork, where these threads are gone."""
    global _lock, _done_for
    _lock, _done_for = threading.Lock(), 1
    _asleep.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
