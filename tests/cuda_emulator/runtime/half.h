// half and nv_bfloat16: numbers of 16 bits, whose arithmetic is that of float32, rounded.
#pragma once

#define HALF_TYPE(T, FROM_FLOAT, TO_FLOAT)                                     \
  struct T##_raw {                                                             \
    uint16_t bits;                                                             \
  }; /* what a volatile one is read by */                                      \
  struct alignas(2) T {                                                        \
    uint16_t bits;                                                             \
    T() = default;                                                             \
    template <class V, class = std::enable_if_t<std::is_arithmetic<V>::value>> \
    T(V v) : bits(FROM_FLOAT(float(v))) {}                                     \
    T(T##_raw v) : bits(v.bits) {}                                             \
    operator T##_raw() const volatile { return {bits}; }                       \
    operator float() const volatile { return TO_FLOAT(bits); }                 \
    void operator=(const T& o) volatile { bits = o.bits; }                     \
    T& operator=(const T& o) = default;                                        \
    T(const T& o) = default;                                                   \
    T& operator+=(T o) { return *this = T(float(*this) + float(o)); }          \
    T& operator-=(T o) { return *this = T(float(*this) - float(o)); }          \
    T& operator*=(T o) { return *this = T(float(*this) * float(o)); }          \
    T& operator/=(T o) { return *this = T(float(*this) / float(o)); }          \
  };                                                                           \
  static inline T operator+(T a, T b) { return T(float(a) + float(b)); }       \
  static inline T operator-(T a, T b) { return T(float(a) - float(b)); }       \
  static inline T operator*(T a, T b) { return T(float(a) * float(b)); }       \
  static inline T operator/(T a, T b) { return T(float(a) / float(b)); }       \
  static inline T operator-(T a) { return T(-float(a)); }                      \
  static inline bool operator<(T a, T b) { return float(a) < float(b); }       \
  static inline bool operator>(T a, T b) { return float(a) > float(b); }       \
  static inline bool operator<=(T a, T b) { return float(a) <= float(b); }     \
  static inline bool operator>=(T a, T b) { return float(a) >= float(b); }     \
  static inline bool operator==(T a, T b) { return float(a) == float(b); }     \
  static inline bool operator!=(T a, T b) { return float(a) != float(b); }     \
  static inline T max(T a, T b) { return a > b ? a : b; }                      \
  static inline T min(T a, T b) { return a < b ? a : b; }                      \
  static inline T __hadd(T a, T b) { return a + b; }                           \
  static inline T __hsub(T a, T b) { return a - b; }                           \
  static inline T __hmul(T a, T b) { return a * b; }                           \
  static inline T __hdiv(T a, T b) { return a / b; }                           \
  static inline T __hneg(T a) { return -a; }                                   \
  static inline T __habs(T a) { return T(fabsf(a)); }                          \
  static inline T __hfma(T a, T b, T c) { return T(fmaf(a, b, c)); }           \
  static inline bool __hgt(T a, T b) { return a > b; }                         \
  static inline bool __hlt(T a, T b) { return a < b; }                         \
  static inline bool __hge(T a, T b) { return a >= b; }                        \
  static inline bool __hle(T a, T b) { return a <= b; }                        \
  static inline bool __heq(T a, T b) { return a == b; }                        \
  static inline bool __hisnan(T a) { return a != a; }                          \
  static inline T __hmax(T a, T b) { return T(fmaxf(a, b)); }                  \
  static inline T __hmin(T a, T b) { return T(fminf(a, b)); }                  \
  static inline T hexp(T a) { return T(expf(a)); }                             \
  static inline T hexp2(T a) { return T(exp2f(a)); }                           \
  static inline T hexp10(T a) { return T(powf(10.0f, a)); }                    \
  static inline T hlog(T a) { return T(logf(a)); }                             \
  static inline T hlog2(T a) { return T(log2f(a)); }                           \
  static inline T hlog10(T a) { return T(log10f(a)); }                         \
  static inline T hsqrt(T a) { return T(sqrtf(a)); }                           \
  static inline T hrsqrt(T a) { return T(1.0f / sqrtf(a)); }                   \
  static inline T hrcp(T a) { return T(1.0f / float(a)); }                     \
  static inline T hsin(T a) { return T(sinf(a)); }                             \
  static inline T hcos(T a) { return T(cosf(a)); }                             \
  static inline T htan(T a) { return T(tanf(a)); }                             \
  static inline T htanh(T a) { return T(tanhf(a)); }                           \
  static inline T hatan(T a) { return T(atanf(a)); }                           \
  static inline T herf(T a) { return T(erff(a)); }                             \
  static inline T hpow(T a, T b) { return T(powf(a, b)); }                     \
  static inline T hfloor(T a) { return T(floorf(a)); }                         \
  static inline T hceil(T a) { return T(ceilf(a)); }                           \
  static inline T htrunc(T a) { return T(truncf(a)); }                         \
  static inline T hrint(T a) { return T(nearbyintf(a)); }                      \
  static inline T hnearbyint(T a) { return T(nearbyintf(a)); }                 \
  static inline bool isnan(T a) { return float(a) != float(a); }               \
  static inline bool isinf(T a) { return std::isinf(float(a)); }               \
  static inline bool isfinite(T a) { return std::isfinite(float(a)); }

#define HALF_PAIR(T, T2, T4)                                                                              \
  struct alignas(4) T2 {                                                                                  \
    T x, y;                                                                                               \
    T2() = default;                                                                                       \
    T2(T x, T y) : x(x), y(y) {}                                                                          \
  };                                                                                                      \
  struct alignas(8) T4 {                                                                                  \
    T x, y, z, w;                                                                                         \
    T4() : x(0), y(0), z(0), w(0) {}                                                                      \
    T4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                                                    \
  };                                                                                                      \
  static inline T2 make_##T2(T x, T y) { return T2(x, y); }                                               \
  static inline T4 make_##T4(T x, T y, T z, T w) { return T4(x, y, z, w); }                               \
  static inline T2 __halves2##T2(T x, T y) { return T2(x, y); }                                           \
  static inline T2 operator+(T2 a, T2 b) { return T2(a.x + b.x, a.y + b.y); }                             \
  static inline T2 operator-(T2 a, T2 b) { return T2(a.x - b.x, a.y - b.y); }                             \
  static inline T2 operator*(T2 a, T2 b) { return T2(a.x * b.x, a.y * b.y); }                             \
  static inline T2 __hadd2(T2 a, T2 b) { return a + b; }                                                  \
  static inline T2 __hsub2(T2 a, T2 b) { return a - b; }                                                  \
  static inline T2 __hmul2(T2 a, T2 b) { return a * b; }                                                  \
  static inline T2 __hfma2(T2 a, T2 b, T2 c) { return T2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); } \
  static inline T2 __hmax2(T2 a, T2 b) { return T2(__hmax(a.x, b.x), __hmax(a.y, b.y)); }                 \
  static inline T2 __hmin2(T2 a, T2 b) { return T2(__hmin(a.x, b.x), __hmin(a.y, b.y)); }                 \
  static inline T __low2half(T2 a) { return a.x; }                                                        \
  static inline T __high2half(T2 a) { return a.y; }                                                       \
  static inline unsigned __pack_##T2(T x, T y) { return unsigned(y.bits) << 16 | x.bits; }

static inline uint16_t emulated_to_half(float v) {
  _Float16 h = (_Float16)v;
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}
static inline float emulated_from_half(uint16_t bits) {
  _Float16 h;
  memcpy(&h, &bits, 2);
  return float(h);
}
// To the nearest, ties to even.
static inline uint16_t emulated_to_bfloat16(float v) {
  uint32_t u = emulated_bits<uint32_t>(v);
  if (v != v) return uint16_t(u >> 16 | 0x40);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline float emulated_from_bfloat16(uint16_t bits) { return emulated_bits<float>(uint32_t(bits) << 16); }

HALF_TYPE(half, emulated_to_half, emulated_from_half)
HALF_TYPE(nv_bfloat16, emulated_to_bfloat16, emulated_from_bfloat16)
using __half = half;
using __nv_bfloat16 = nv_bfloat16;
HALF_PAIR(half, half2, half4)
HALF_PAIR(nv_bfloat16, nv_bfloat162, nv_bfloat164)
using __half2 = half2;
using __nv_bfloat162 = nv_bfloat162;

static inline half __float2half(float v) { return half(v); }
static inline half __float2half_rn(float v) { return half(v); }
static inline float __half2float(half v) { return v; }
static inline half __ushort_as_half(unsigned short v) { return emulated_bits<half>(v); }
static inline unsigned short __half_as_ushort(half v) { return v.bits; }
static inline half2 __float22half2_rn(float2 v) { return half2(v.x, v.y); }
static inline half2 __floats2half2_rn(float x, float y) { return half2(x, y); }
static inline float2 __half22float2(half2 v) { return make_float2(v.x, v.y); }
static inline half2 __half2half2(half v) { return half2(v, v); }
static inline float __low2float(half2 v) { return v.x; }
static inline float __high2float(half2 v) { return v.y; }
static inline nv_bfloat16 __float2bfloat16(float v) { return nv_bfloat16(v); }
static inline nv_bfloat16 __float2bfloat16_rn(float v) { return nv_bfloat16(v); }
static inline float __bfloat162float(nv_bfloat16 v) { return v; }
static inline nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return emulated_bits<nv_bfloat16>(v); }
static inline unsigned short __bfloat16_as_ushort(nv_bfloat16 v) { return v.bits; }
static inline nv_bfloat162 __float22bfloat162_rn(float2 v) { return nv_bfloat162(v.x, v.y); }
static inline nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return nv_bfloat162(x, y); }
static inline float2 __bfloat1622float2(nv_bfloat162 v) { return make_float2(v.x, v.y); }
static inline nv_bfloat162 __bfloat162bfloat162(nv_bfloat16 v) { return nv_bfloat162(v, v); }
