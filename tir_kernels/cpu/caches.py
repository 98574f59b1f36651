"""Caches that blocks are cut for: what CPUs have in common.

The same for every CPU and not what the machine at hand has: where a sum is cut decides its bits.
"""

from tvm.script import tirx as T

L1 = 32 * 1024  # bytes of data that a core has nearest
L2 = 512 * 1024
LINE = 64  # bytes that come together


def prefetch(address):
    """Emit: bring the line at `address`, which is read later, into the L2 cache. It may lie past the end of what there is."""
    to_read, level, data = 0, 2, 1
    T.evaluate(T.call_intrin("void", "tirx.prefetch", address, to_read, level, data))
