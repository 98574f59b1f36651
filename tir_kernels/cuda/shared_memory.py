"""Reads and writes of shared memory by address.

TVM puts a barrier wherever it sees shared memory written and read, also where kernels have their own, and refuses to inside of
branches. What goes by address it leaves alone.
"""

from tvm.script import tirx as T

_COPY_ELEMENTS = """
__forceinline__ __device__ void tir_copy_elements_{size}(void* target, void* source, int count) {{
  unsigned {kind} elements[{vector}];
  #pragma unroll
  for (int e = 0; e < {vector}; ++e) elements[e] = e < count ? ((unsigned {kind}*)source)[e] : 0;
  uint4 chunk;
  memcpy(&chunk, elements, 16);
  *(uint4*)target = chunk;
}}
"""

_STORE_PAIR = """
__forceinline__ __device__ void tir_store_pair(void* base, int place, float first, float second) {
  *(float2*)((float*)base + place) = make_float2(first, second);
}
"""

_LOAD_VECTOR = """
__forceinline__ __device__ void tir_load_vector(void* local, void* base, int place) {
  float4 vector = *(float4*)((float*)base + place);
  memcpy(local, &vector, 16);
}
"""

_LOAD = """
__forceinline__ __device__ float tir_load_f32(void* base, int place) {
  return ((float*)base)[place];
}
"""

_STORE = """
__forceinline__ __device__ void tir_store_f32(void* base, int place, float value) {
  ((float*)base)[place] = value;
}
"""


def copy_elements(target, source, size: int, count) -> None:
    """Emit: `count` elements of `size` bytes, and zeros behind them, to the 16 bytes at `target`; the source is as it comes."""
    kind = {2: "short", 4: "int"}[size]
    code = _COPY_ELEMENTS.format(size=size, kind=kind, vector=16 // size)
    T.evaluate(T.cuda.func_call(f"tir_copy_elements_{size}", target, source, count, source_code=code))


def store_pair(base, place, first, second) -> None:
    """Emit: two float32 to an even place of the float32 from `base` on."""
    T.evaluate(T.cuda.func_call("tir_store_pair", base, place, first, second, source_code=_STORE_PAIR))


def load_vector(local, base, place) -> None:
    """Emit: four float32 into a local buffer, from a place that four divides."""
    T.evaluate(T.cuda.func_call("tir_load_vector", local.ptr_to([0]), base, place, source_code=_LOAD_VECTOR))


def load(base, place):
    """The float32 at a place."""
    return T.cuda.func_call("tir_load_f32", base, place, source_code=_LOAD, return_type="float32")


def store(base, place, value) -> None:
    """Emit: a float32 to a place."""
    T.evaluate(T.cuda.func_call("tir_store_f32", base, place, value, source_code=_STORE))
