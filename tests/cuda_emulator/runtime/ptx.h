// The PTX instructions that translate.py finds, as functions of their operands.
#pragma once

template <class T>
static inline uint32_t emulated_register(T v) {
  static_assert(sizeof(T) == 4, "a register of 32 bits");
  return emulated_bits<uint32_t>(v);
}
template <class T>
static inline void emulated_assign(T& to, uint32_t v) {
  to = emulated_bits<T>(v);
}

template <int TYPE, int K, class D, class A, class B, class C>
static inline void ptx_mma(D& d0, D& d1, D& d2, D& d3, const A (&a)[TYPE == MMA_F16 || TYPE == MMA_BF16 ? K / 4 : TYPE == MMA_TF32 ? K / 2 : K / 8],
                           const B (&b)[TYPE == MMA_F16 || TYPE == MMA_BF16 ? K / 8 : TYPE == MMA_TF32 ? K / 4 : K / 16], C c0, C c1, C c2, C c3) {
  uint32_t d[4], c[4] = {emulated_register(c0), emulated_register(c1), emulated_register(c2), emulated_register(c3)};
  emulator_mma(TYPE, K, d, a, b, c);
  emulated_assign(d0, d[0]);
  emulated_assign(d1, d[1]);
  emulated_assign(d2, d[2]);
  emulated_assign(d3, d[3]);
}

template <bool TRANSPOSED, class R, class P>
static inline void ptx_ldmatrix(R& r0, P address) {
  uint32_t r[4];
  emulator_ldmatrix(1, TRANSPOSED, r, uint32_t(address));
  emulated_assign(r0, r[0]);
}
template <bool TRANSPOSED, class R, class P>
static inline void ptx_ldmatrix(R& r0, R& r1, P address) {
  uint32_t r[4];
  emulator_ldmatrix(2, TRANSPOSED, r, uint32_t(address));
  emulated_assign(r0, r[0]);
  emulated_assign(r1, r[1]);
}
template <bool TRANSPOSED, class R, class P>
static inline void ptx_ldmatrix(R& r0, R& r1, R& r2, R& r3, P address) {
  uint32_t r[4];
  emulator_ldmatrix(4, TRANSPOSED, r, uint32_t(address));
  emulated_assign(r0, r[0]);
  emulated_assign(r1, r[1]);
  emulated_assign(r2, r[2]);
  emulated_assign(r3, r[3]);
}

// To the nearest of 10 bits, ties away from zero.
template <class T>
static inline void ptx_cvt_tf32(T& to, float v) {
  uint32_t bits = emulated_bits<uint32_t>(v);
  emulated_assign(to, v != v ? bits : (bits + 0x1000) & ~0x1fffu);
}

template <class T, class P>
static inline void ptx_atomic_load(T& to, P address) {
  uint64_t bits = emulator_atomic(ATOMIC_LOAD, sizeof(T), (void*)address, 0, 0);
  memcpy(&to, &bits, sizeof(T));
}
template <class P, class T>
static inline void ptx_atomic_store(P address, T v) {
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof(T));
  emulator_atomic(ATOMIC_STORE, sizeof(T), (void*)address, bits, 0);
}
