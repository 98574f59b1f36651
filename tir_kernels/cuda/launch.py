"""How threads of a grid share elements: the launches of kernels that treat each element alone."""

from tvm.script import tirx as T

THREADS = 256


def blocks_for(count, threads: int = THREADS):
    """Blocks of `threads` for `count` elements, an int64 expression: at least one, as CUDA launches no empty grid."""
    return T.max((count + (threads - 1)) // threads, T.int64(1))
