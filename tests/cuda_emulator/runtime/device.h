// What generated CUDA C++ finds in place of CUDA's own headers. Half and bfloat16 are in half.h.
#pragma once
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmath>
#include <type_traits>

#include "interface.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define CUDART_INF_F (__builtin_inff())
#define CUDART_NAN_F (__builtin_nanf(""))
#define CUDART_INF (__builtin_inf())
#define CUDART_NAN (__builtin_nan(""))
#define PLAIN __attribute__((no_sanitize("thread")))
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short

// Outside of kernels, where translate.py does not put constants of these names.
#define INDEX_OBJECT(name, function)                     \
  static const struct {                                  \
    struct {                                             \
      operator unsigned() const { return function().x; } \
    } x;                                                 \
    struct {                                             \
      operator unsigned() const { return function().y; } \
    } y;                                                 \
    struct {                                             \
      operator unsigned() const { return function().z; } \
    } z;                                                 \
  } name = {};
INDEX_OBJECT(threadIdx, emulator_thread_index)
INDEX_OBJECT(blockIdx, emulator_block_index)
INDEX_OBJECT(blockDim, emulator_block_dim)
INDEX_OBJECT(gridDim, emulator_grid_dim)
static const int warpSize = 32;

// ---- Vectors
#define VECTORS(T, name, a2, a4)                                    \
  struct name##1 { T x; };                                          \
  struct alignas(a2) name##2 { T x, y; };                           \
  struct alignas(a4) name##4 { T x, y, z, w; };                     \
  static inline name##1 make_##name##1(T x) { return {x}; }         \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define VECTOR3(T, name)         \
  struct name##3 { T x, y, z; }; \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }
VECTORS(unsigned int, uint, 8, 16)
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
VECTORS(signed char, char, 2, 4)
VECTORS(unsigned char, uchar, 2, 4)
VECTORS(short, short, 4, 8)
VECTORS(unsigned short, ushort, 4, 8)
VECTORS(int, int, 8, 16)
VECTORS(float, float, 8, 16)
VECTORS(double, double, 16, 16)
VECTORS(long long, longlong, 16, 16)
VECTORS(unsigned long long, ulonglong, 16, 16)
VECTOR3(int, int)
VECTOR3(float, float)
VECTOR3(double, double)
VECTOR3(short, short)
VECTOR3(long long, longlong)

// ---- Barriers, votes, shuffles
#define __syncthreads() ((void)emulator_barrier(__LINE__, BARRIER_PLAIN, 0))
#define __syncthreads_and(p) emulator_barrier(__LINE__, BARRIER_AND, (p) != 0)
#define __syncthreads_or(p) emulator_barrier(__LINE__, BARRIER_OR, (p) != 0)
#define __syncthreads_count(p) emulator_barrier(__LINE__, BARRIER_COUNT, (p) != 0)
static inline void __syncwarp(unsigned mask = ~0u) { emulator_warp_sync(mask); }
static inline unsigned __activemask() { return emulator_active_mask(); }
static inline unsigned __ballot_sync(unsigned mask, int p) { return emulator_vote(VOTE_BALLOT, mask, p != 0); }
static inline int __any_sync(unsigned mask, int p) { return emulator_vote(VOTE_ANY, mask, p != 0); }
static inline int __all_sync(unsigned mask, int p) { return emulator_vote(VOTE_ALL, mask, p != 0); }
template <class T>
static inline T emulated_shuffle(int kind, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = emulator_shuffle(kind, mask, bits, argument, width);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
static inline T __shfl_sync(unsigned m, T v, int lane, int width = 32) {
  return emulated_shuffle(SHUFFLE_INDEX, m, v, lane, width);
}
template <class T>
static inline T __shfl_up_sync(unsigned m, T v, unsigned d, int width = 32) {
  return emulated_shuffle(SHUFFLE_UP, m, v, d, width);
}
template <class T>
static inline T __shfl_down_sync(unsigned m, T v, unsigned d, int width = 32) {
  return emulated_shuffle(SHUFFLE_DOWN, m, v, d, width);
}
template <class T>
static inline T __shfl_xor_sync(unsigned m, T v, int x, int width = 32) {
  return emulated_shuffle(SHUFFLE_XOR, m, v, x, width);
}
template <class T>
static inline unsigned __match_any_sync(unsigned mask, T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return emulator_match_any(mask, bits);
}
static inline unsigned __reduce_add_sync(unsigned m, unsigned v) { return emulator_reduce(REDUCE_ADD, m, v); }
static inline int __reduce_add_sync(unsigned m, int v) { return emulator_reduce(REDUCE_ADD, m, v); }
static inline unsigned __reduce_min_sync(unsigned m, unsigned v) { return emulator_reduce(REDUCE_MIN, m, v); }
static inline int __reduce_min_sync(unsigned m, int v) { return emulator_reduce(REDUCE_MIN_SIGNED, m, v); }
static inline unsigned __reduce_max_sync(unsigned m, unsigned v) { return emulator_reduce(REDUCE_MAX, m, v); }
static inline int __reduce_max_sync(unsigned m, int v) { return emulator_reduce(REDUCE_MAX_SIGNED, m, v); }
static inline unsigned __reduce_and_sync(unsigned m, unsigned v) { return emulator_reduce(REDUCE_AND, m, v); }
static inline unsigned __reduce_or_sync(unsigned m, unsigned v) { return emulator_reduce(REDUCE_OR, m, v); }
static inline unsigned __reduce_xor_sync(unsigned m, unsigned v) { return emulator_reduce(REDUCE_XOR, m, v); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned) { emulator_pause(); }
static inline void __trap() { emulator_trap("__trap()"); }

// ---- Atomics, for the types that CUDA has them for
#define ATOMIC(name, T, kind)                            \
  static inline T name(T* p, T v) {                      \
    uint64_t bits = 0;                                   \
    memcpy(&bits, &v, sizeof(T));                        \
    bits = emulator_atomic(kind, sizeof(T), p, bits, 0); \
    memcpy(&v, &bits, sizeof(T));                        \
    return v;                                            \
  }
#define ATOMICS(T, signedness)                 \
  ATOMIC(atomicMin, T, ATOMIC_MIN##signedness) \
  ATOMIC(atomicMax, T, ATOMIC_MAX##signedness) \
  ATOMIC(atomicAnd, T, ATOMIC_AND)             \
  ATOMIC(atomicOr, T, ATOMIC_OR)               \
  ATOMIC(atomicXor, T, ATOMIC_XOR)
ATOMICS(int, _SIGNED)
ATOMICS(unsigned int, )
ATOMICS(long long, _SIGNED)
ATOMICS(unsigned long long, )
ATOMIC(atomicAdd, int, ATOMIC_ADD)
ATOMIC(atomicAdd, unsigned int, ATOMIC_ADD)
ATOMIC(atomicAdd, unsigned long long, ATOMIC_ADD)
ATOMIC(atomicAdd, float, ATOMIC_ADD_FLOAT)
ATOMIC(atomicAdd, double, ATOMIC_ADD_DOUBLE)
ATOMIC(atomicExch, int, ATOMIC_EXCHANGE)
ATOMIC(atomicExch, unsigned int, ATOMIC_EXCHANGE)
ATOMIC(atomicExch, unsigned long long, ATOMIC_EXCHANGE)
ATOMIC(atomicExch, float, ATOMIC_EXCHANGE)
static inline int atomicSub(int* p, int v) { return atomicAdd(p, -v); }
static inline unsigned atomicSub(unsigned* p, unsigned v) { return atomicAdd(p, 0u - v); }
#define ATOMIC_CAS_OF(T)                                                                                   \
  static inline T atomicCAS(T* p, T compare, T value) {                                                    \
    const uint64_t bits = ~0ull >> (64 - 8 * sizeof(T));                                                   \
    return (T)emulator_atomic(ATOMIC_CAS, sizeof(T), p, (uint64_t)value & bits, (uint64_t)compare & bits); \
  }
ATOMIC_CAS_OF(int)
ATOMIC_CAS_OF(unsigned int)
ATOMIC_CAS_OF(unsigned long long)
ATOMIC_CAS_OF(unsigned short)

// ---- Bits and conversions
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
static inline int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __ffsll(long long v) { return __builtin_ffsll(v); }
static inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
  return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
static inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
  return unsigned((((uint64_t)high << 32 | low) << (n & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
  return unsigned(((uint64_t)high << 32 | low) >> (n & 31));
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  uint64_t v = (uint64_t)y << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= unsigned(v >> 8 * (s >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
}
static inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
  return c;
}
template <class To, class From>
static inline To emulated_bits(From v) {
  To r;
  static_assert(sizeof(To) == sizeof(From), "");
  memcpy(&r, &v, sizeof(To));
  return r;
}
static inline int __float_as_int(float v) { return emulated_bits<int>(v); }
static inline unsigned __float_as_uint(float v) { return emulated_bits<unsigned>(v); }
static inline float __int_as_float(int v) { return emulated_bits<float>(v); }
static inline float __uint_as_float(unsigned v) { return emulated_bits<float>(v); }
static inline long long __double_as_longlong(double v) { return emulated_bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return emulated_bits<double>(v); }
static inline int __float2int_rn(float v) { return int(nearbyintf(v)); }
static inline int __float2int_rz(float v) { return int(v); }
static inline int __float2int_rd(float v) { return int(floorf(v)); }
static inline float __int2float_rn(int v) { return float(v); }
static inline float __uint2float_rn(unsigned v) { return float(v); }
template <class T>
static inline T __ldg(const T* p) {
  return *p;
}
template <class T>
static inline T __ldcg(const T* p) {
  return *p;
}
template <class T>
static inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
static inline void __stcg(T* p, T v) {
  *p = v;
}
template <class T>
static inline void __stcs(T* p, T v) {
  *p = v;
}
static inline uint32_t __cvta_generic_to_shared(const void* p) { return emulator_shared_address(p); }

// ---- Arithmetic. Approximate functions are the exact ones.
static inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
static inline double rsqrt(double v) { return 1.0 / sqrt(v); }
#define __expf(v) expf(float(v))
#define __exp10f(v) powf(10.0f, float(v))
#define __logf(v) logf(float(v))
#define __log2f(v) log2f(float(v))
#define __log10f(v) log10f(float(v))
#define __sinf(v) sinf(float(v))
#define __cosf(v) cosf(float(v))
#define __tanf(v) tanf(float(v))
#define __tanhf(v) tanhf(float(v))
#define __powf(a, b) powf(float(a), float(b))
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float v) { return 1.0f / v; }
static inline float __fsqrt_rn(float v) { return sqrtf(v); }
static inline float __frsqrt_rn(float v) { return 1.0f / sqrtf(v); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __saturatef(float v) { return v < 0 ? 0 : v > 1 ? 1 : v == v ? v : 0; }
// As on a GPU, the number wins over NaN in max and min of floats.
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, float b) { return fmax(a, b); }
static inline double max(float a, double b) { return fmax(a, b); }
static inline double min(double a, float b) { return fmin(a, b); }
static inline double min(float a, double b) { return fmin(a, b); }
template <class A, class B, class = std::enable_if_t<std::is_integral<A>::value && std::is_integral<B>::value>>
static inline std::common_type_t<A, B> max(A a, B b) {
  return std::common_type_t<A, B>(a) > std::common_type_t<A, B>(b) ? a : b;
}
template <class A, class B, class = std::enable_if_t<std::is_integral<A>::value && std::is_integral<B>::value>>
static inline std::common_type_t<A, B> min(A a, B b) {
  return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? a : b;
}
using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;

#include "half.h"
#include "ptx.h"
