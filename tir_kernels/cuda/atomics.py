"""Atomic operations on integers, whose results do not depend on the order of threads where they are used as intended.

Floats are never added so: their sums would depend on it.
"""

from tvm.script import tirx as T

_C = {"int32": "int", "int64": "long long", "uint32": "unsigned int", "uint64": "unsigned long long"}
_WITH_VALUE = """
__forceinline__ __device__ {given} tir_atomic_{op}_{short}(void* p, {given} value) {{
  return ({given})atomic{function}(({type}*)p, ({type})value);
}}
"""
_CAS = """
__forceinline__ __device__ long long tir_atomic_cas_i64(void* p, long long expected, long long value) {
  return (long long)atomicCAS((unsigned long long*)p, (unsigned long long)expected, (unsigned long long)value);
}
"""


def _atomic(op: str, function: str, buffer, place, value, given: str, type: str | None = None):
    """A call of CUDA's function on `type`, by default that of the buffer's elements, which are `given`."""
    type = type or given
    short = type.replace("uint", "u").replace("int", "i")
    source = _WITH_VALUE.format(op=op, short=short, function=function, given=_C[given], type=_C[type])
    places = place if isinstance(place, list) else [place]
    name = f"tir_atomic_{op}_{short}"
    return T.cuda.func_call(name, buffer.ptr_to(places), value, source_code=source, return_type=given)


def atomic_min(buffer, place, value):
    """The int32 or int64 at a place of `buffer` becomes the least of itself and `value`; what it was before."""
    return _atomic("min", "Min", buffer, place, value, str(buffer.dtype))


def atomic_max(buffer, place, value):
    """The int32 at a place of `buffer` becomes the largest of itself and `value`; what it was before."""
    return _atomic("max", "Max", buffer, place, value, "int32")


def atomic_least_row(buffer, place, row):
    """The int32 at a place of `buffer`, a row or -1 for none, becomes the least row of itself and `row`; what it was before."""
    return _atomic("min", "Min", buffer, place, row, "int32", "uint32")  # as an unsigned number -1 is the largest


def atomic_or(buffer, place, bits):
    """The int32 at a place of `buffer` gets the bits of `bits` too; what it was before."""
    return _atomic("or", "Or", buffer, place, bits, "int32")


def atomic_or_64(buffer, place, bits):
    """As `atomic_or`, of int64."""
    return _atomic("or", "Or", buffer, place, bits, "int64", "uint64")


def atomic_cas(buffer, place, expected, value):
    """The int64 at a place of `buffer` becomes `value` if it is `expected`; what it was before."""
    return T.cuda.func_call(
        "tir_atomic_cas_i64", buffer.ptr_to([place]), expected, value, source_code=_CAS, return_type="int64"
    )
