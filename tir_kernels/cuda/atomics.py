"""Atomic operations on integers, whose results do not depend on the order of threads where they are used as intended.

Floats are never added so: their sums would depend on it.
"""

from tvm.script import tirx as T

_MIN = """
__forceinline__ __device__ long long tir_atomic_min_i64(void* p, long long value) {
  return atomicMin((long long*)p, value);
}
"""


def atomic_min(buffer, place, value):
    """The int64 at a place of `buffer` becomes the least of itself and `value`; what it was before."""
    return T.cuda.func_call("tir_atomic_min_i64", buffer.ptr_to([place]), value, source_code=_MIN, return_type="int64")
