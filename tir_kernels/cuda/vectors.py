"""Elements that a thread moves together, as a GPU reaches its bandwidth only by loads of 16 bytes.

A vector has to begin at a multiple of its size. Tensors of the virtual machine do, views of others need not: a kernel asks
where its buffers begin, and falls back to single elements.
"""

import tvm
from tvm.script import tirx as T

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
