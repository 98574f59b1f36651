"""Caches that blocks are cut for: what CPUs have in common.

The same for every CPU and not what the machine at hand has: where a sum is cut decides its bits.
"""

L1 = 32 * 1024  # bytes of data that a core has nearest
L2 = 512 * 1024
LINE = 64  # bytes that come together
