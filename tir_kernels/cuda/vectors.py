"""Elements that a thread moves together, as a GPU reaches its bandwidth only by loads of 16 bytes.

A vector has to begin at a multiple of its size. Tensors of the virtual machine do, views of others need not: a kernel asks
where its buffers begin, and falls back to single elements.
"""

import tvm
from tvm.script import tirx as T

from ..script import inline

BYTES = 16  # of the widest load

_ALIGNED = """
__forceinline__ __device__ bool tir_is_aligned(const void* p) {
  return ((unsigned long long)p & 15) == 0;
}
"""


def width(dtype: str, channels: int | None = None) -> int:
    """Elements of a vector; 1 where `channels` of a row are no whole number of vectors."""
    elements = BYTES // tvm.DataType(dtype).itemsize
    return elements if channels is None or channels % elements == 0 else 1


def aligned(*buffers):
    """Whether buffers begin where vectors may, on the device."""
    all_aligned = T.bool(True)
    for buffer in buffers:
        place = [0] * len(buffer.shape)
        begins = T.cuda.func_call("tir_is_aligned", buffer.ptr_to(place), source_code=_ALIGNED, return_type="bool")
        all_aligned = T.And(all_aligned, begins)
    return all_aligned


@inline
def load_vector(given, at, x, row, first, lanes):
    """given[at ... at + lanes] = x[row, first ... first + lanes]; `given` is a thread's own, of the dtype of x."""
    if aligned(x):
        for lane in T.vectorized(lanes):
            given[at + lane] = x[row, first + lane]
    else:
        for lane in T.unroll(lanes):
            given[at + lane] = x[row, first + lane]


@inline
def store_vector(out, row, first, value, lanes):
    """out[row, first ... first + lanes] = value [lanes], which is a thread's own and may be of another dtype."""
    made = T.alloc_local((lanes,), out.dtype)
    for lane in T.unroll(lanes):
        made[lane] = T.Cast(out.dtype, value[lane])
    if aligned(out):
        for lane in T.vectorized(lanes):
            out[row, first + lane] = made[lane]
    else:
        for lane in T.unroll(lanes):
            out[row, first + lane] = made[lane]
