"""What fits into memory: kernels ask before anything large is allocated, and a ValueError says how much was asked for.

Extents and sizes are data, and a grid of any extent is legal. An allocation that fails ends the process, and one that the
system grants but cannot back does so later, so a kernel that runs before the allocation asks here first.

The limit is what the machine has left: its available memory and swap, or what is left of the control groups (version 2) of the
process, whichever is less; for a CUDA device what is left of its memory. TIR_KERNELS_MEMORY, in bytes, takes the place of both.
Where the system does not tell there is none.

The host calls `CHECK_MEMORY`, or `CHECK_DEVICE_MEMORY` for what lies on a device, for more than `ASK_BYTES` only, so that
smaller calls cost nothing. Both are registered when `tir_kernels` (or anything above it) is imported, as the refusals of
`guards` are.
"""

import os
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import tvm

from .guards import memory_words

VARIABLE = "TIR_KERNELS_MEMORY"
CHECK_MEMORY = "tir_kernels.check_memory"
CHECK_DEVICE_MEMORY = "tir_kernels.check_device_memory"
DEVICE_MEBIBYTES = "tir_kernels.device_mebibytes"
ASK_BYTES = 1 << 30
MEMORY_INFO = Path("/proc/meminfo")


def available_bytes(
    information: Path = MEMORY_INFO, membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that this process may still allocate; None where nobody knows.

    `information`: what Linux tells of its memory; `membership` and `mount`: the control group of the process, and where groups
    lie. Raises ValueError where TIR_KERNELS_MEMORY is no number.
    """
    chosen = _chosen_bytes()
    if chosen is not None:
        return chosen
    try:
        lines = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
        left = [sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))]
    except (OSError, KeyError):  # not Linux
        names = getattr(os, "sysconf_names", {})
        left = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if "SC_PHYS_PAGES" in names else []
    return min(left + _left_of_groups(membership, mount), default=None)


def available_device_bytes() -> int | None:
    """Bytes that may still be allocated on the CUDA device that is current here; None where nobody knows.

    Raises ValueError as `available_bytes`.
    """
    chosen = _chosen_bytes()
    return tvm.cuda().available_global_memory if chosen is None else chosen  # asks the current device, whatever its number


def _chosen_bytes() -> int | None:
    """What TIR_KERNELS_MEMORY says."""
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return None
    if not chosen.isdecimal():
        raise ValueError(f"{VARIABLE}: expected a number of bytes, given {chosen!r}")
    return int(chosen)


def _left_of_groups(membership: Path, mount: Path) -> list[int]:
    """Bytes that each control group around this process still allows; what caches files is given back when it is needed."""
    try:
        lines = membership.read_text().splitlines()
        own = next(mount / line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    except (OSError, StopIteration):  # not Linux, or control groups of version 1
        return []
    left = []
    for group in (own, *own.parents):
        try:
            most, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the root group has none, nor has a folder that is no group
            continue
        if most != "max":
            left.append(max(0, int(most) - used + int(counts.get("inactive_file", 0))))
    return left


def check_memory(what: str, kinds: str, *dims: int) -> None:
    """ValueError unless some tensors fit into what is left together; `what` names who makes them.

    `kinds`: dtype and number of dimensions of each, "float32 5 int32 1"; `dims`: the dimensions of all, one after the other.
    """
    _check(what, kinds, dims, available_bytes)


def check_device_memory(what: str, kinds: str, *dims: int) -> None:
    """As `check_memory`, for tensors on the current CUDA device."""
    _check(what, kinds, dims, available_device_bytes)


def _check(what: str, kinds: str, dims: Sequence[int], available: Callable[[], int | None]) -> None:
    words, sizes, shapes = kinds.split(), list(dims), []
    for dtype, rank in zip(words[::2], words[1::2], strict=True):
        shapes.append((dtype, sizes[: int(rank)]))
        del sizes[: int(rank)]
    size = sum(prod(shape) * tvm.DataType(dtype).itemsize for dtype, shape in shapes)
    left = available()
    if left is not None and size > left:
        raise ValueError(memory_words(what, *shapes[0], size, left))


def device_mebibytes() -> int:
    """What `available_device_bytes` says in MiB, as an int32: what kernels can be told."""
    left = available_device_bytes()
    return 2**31 - 1 if left is None else min(left >> 20, 2**31 - 1)


tvm.register_global_func(CHECK_MEMORY, check_memory)
tvm.register_global_func(CHECK_DEVICE_MEMORY, check_device_memory)
tvm.register_global_func(DEVICE_MEBIBYTES, device_mebibytes)
