"""What the 32 threads of a warp, its lanes, do together: all of them must come along, also those that have nothing to give."""

from tvm.script import tirx as T

from ..script import inline
from .gpu import WARP

ALL_LANES = 0xFFFFFFFF
STEPS = WARP.bit_length() - 1

_RANK = """
__forceinline__ __device__ int tir_rank_in_warp(void* p, int digit, int bits, bool taken) {
  int* counts = (int*)p;
  unsigned equal = __ballot_sync(0xFFFFFFFF, taken);
  for (int bit = 0; bit < bits; ++bit) {
    unsigned set = __ballot_sync(0xFFFFFFFF, (digit >> bit) & 1);
    equal &= ((digit >> bit) & 1) ? set : ~set;
  }
  int before = __popc(equal & ((1u << (threadIdx.x & 31)) - 1));
  int rank = 0;
  if (taken) rank = counts[digit] + before;
  __syncwarp();
  if (taken && before == 0) counts[digit] += __popc(equal);
  __syncwarp();
  return rank;
}
"""


def rank_in_warp(counts, place, digit, bits: int, taken):
    """How many came before with the same `digit` of `bits` bits: those that counts[place + digit] had, and lower lanes of now.

    All are then counted. Lanes for which `taken` is false count nothing. `counts`: int32 in shared memory, the warp's own; the
    threads of a block lie along x.
    """
    args = counts.ptr_to(place), digit, bits, taken
    return T.cuda.func_call("tir_rank_in_warp", *args, source_code=_RANK, return_type="int32")


def from_lane(value, lane):
    """What `value` is in another lane."""
    return T.tvm_warp_shuffle(T.uint32(ALL_LANES), value, lane, WARP, WARP)


def from_below(value, distance):
    """What `value` is in the lane that is `distance` lower; its own in the lowest ones."""
    return T.tvm_warp_shuffle_up(T.uint32(ALL_LANES), value, distance, WARP, WARP)


def from_other(value, distance):
    """What `value` is in the lane whose number differs in the one bit of `distance`."""
    return T.tvm_warp_shuffle_xor(T.uint32(ALL_LANES), value, distance, WARP, WARP)


@inline
def add_lower_lanes(sums, place, lane):
    """sums[place] becomes its sum over the lanes up to this one; `sums` is a thread's own."""
    below = T.alloc_local((1,), sums.dtype)
    for step in T.unroll(STEPS):
        below[0] = from_below(sums[place], T.shift_left(1, step))
        if lane >= T.shift_left(1, step):
            sums[place] = sums[place] + below[0]


_EXTREME = """
__forceinline__ __device__ int tir_warp_{name}(int value) {{
  for (int distance = 16; distance > 0; distance >>= 1) {{
    value = {name}(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
  }}
  return value;
}}
"""
_BALLOT = """
__forceinline__ __device__ int tir_ballot(bool taken) {
  return (int)__ballot_sync(0xFFFFFFFF, taken);
}
"""


def least_of_warp(value):
    """The least int32 `value` of all lanes."""
    return T.cuda.func_call("tir_warp_min", value, source_code=_EXTREME.format(name="min"), return_type="int32")


def largest_of_warp(value):
    """The largest int32 `value` of all lanes."""
    return T.cuda.func_call("tir_warp_max", value, source_code=_EXTREME.format(name="max"), return_type="int32")


def ballot(taken):
    """An int32 whose bits are `taken` of every lane."""
    return T.cuda.func_call("tir_ballot", taken, source_code=_BALLOT, return_type="int32")


_COUNT_BITS = """
__forceinline__ __device__ int tir_count_bits(int word) {
  return __popc(word);
}
"""
_COUNT_BITS_BELOW = """
__forceinline__ __device__ int tir_count_bits_below(int word, int bit) {
  return __popc((unsigned)word & ((1u << bit) - 1));
}
"""
_COUNT = """
__forceinline__ __device__ int tir_count_in_warp(void* p, int place, bool taken) {
  unsigned left = __ballot_sync(0xFFFFFFFF, taken);
  while (left) {
    int lane = __ffs(left) - 1;
    int other = __shfl_sync(0xFFFFFFFF, place, lane);
    unsigned equal = __ballot_sync(0xFFFFFFFF, taken && place == other);
    if ((threadIdx.x & 31) == lane) atomicAdd((unsigned long long*)p + other, (unsigned long long)__popc(equal));
    left &= ~equal;
  }
  return 0;
}
"""


def count_bits(word):
    """How many bits of an int32 are set; TVM has no name for it on a device."""
    return T.cuda.func_call("tir_count_bits", word, source_code=_COUNT_BITS, return_type="int32")


def count_bits_below(word, bit):
    """How many of the lowest `bit` bits of an int32 are set, of 0 to 31."""
    return T.cuda.func_call("tir_count_bits_below", word, bit, source_code=_COUNT_BITS_BELOW, return_type="int32")


def count_in_warp(counts, place, taken):
    """The int64 counts[place] go up by the number of lanes that name this place, of those for which `taken` is true."""
    args = counts.ptr_to([0]), place, taken
    return T.cuda.func_call("tir_count_in_warp", *args, source_code=_COUNT, return_type="int32")
