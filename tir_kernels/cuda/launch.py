"""How threads of a grid share elements: the launches of kernels that treat each element alone."""

from collections.abc import Callable

from tvm.script import tirx as T

from ..script import inline

THREADS = 256


def left_to_nvcc():
    """A frame in which `T.unroll` is a hint to nvcc. TVM would write loops out, which takes its later passes very long."""
    return T.attr(T.int32(0), "pragma_unroll_explicit", 0)


def blocks_for(count, threads: int = THREADS):
    """Blocks of `threads` for `count` elements, an int64 expression: at least one, as CUDA launches no empty grid."""
    return T.max((count + (threads - 1)) // threads, T.int64(1))


def for_each(count, body: Callable) -> None:
    """Emit a launch: `body(place)` by a thread for every place from 0 to count - 1, an int64 expression."""

    @inline
    def emit(count):
        with T.launch_thread("blockIdx.x", blocks_for(count)) as block:
            thread = T.launch_thread("threadIdx.x", THREADS)
            place: T.let = T.Cast("int64", block) * THREADS + T.Cast("int64", thread)
            if place < count:
                body(place)

    emit(count)
