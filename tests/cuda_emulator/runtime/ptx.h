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

static inline uint64_t emulated_pair(uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }

// a0 to a3 and b0, b1: 0 where an instruction has fewer.
template <int TYPE, int K, class D, class C>
static inline void ptx_mma(D& d0, D& d1, D& d2, D& d3, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                           uint32_t b1, C c0, C c1, C c2, C c3) {
  const emulator_registers d = emulator_mma(TYPE << 8 | K, emulated_pair(a0, a1), emulated_pair(a2, a3), emulated_pair(b0, b1),
                                            emulated_pair(emulated_register(c0), emulated_register(c1)),
                                            emulated_pair(emulated_register(c2), emulated_register(c3)));
  emulated_assign(d0, uint32_t(d.low));
  emulated_assign(d1, uint32_t(d.low >> 32));
  emulated_assign(d2, uint32_t(d.high));
  emulated_assign(d3, uint32_t(d.high >> 32));
}

template <bool TRANSPOSED, class R, class P>
static inline void ptx_ldmatrix(R& r0, P address) {
  const emulator_registers r = emulator_ldmatrix(1, TRANSPOSED, uint32_t(address));
  emulated_assign(r0, uint32_t(r.low));
}
template <bool TRANSPOSED, class R, class P>
static inline void ptx_ldmatrix(R& r0, R& r1, P address) {
  const emulator_registers r = emulator_ldmatrix(2, TRANSPOSED, uint32_t(address));
  emulated_assign(r0, uint32_t(r.low));
  emulated_assign(r1, uint32_t(r.low >> 32));
}
template <bool TRANSPOSED, class R, class P>
static inline void ptx_ldmatrix(R& r0, R& r1, R& r2, R& r3, P address) {
  const emulator_registers r = emulator_ldmatrix(4, TRANSPOSED, uint32_t(address));
  emulated_assign(r0, uint32_t(r.low));
  emulated_assign(r1, uint32_t(r.low >> 32));
  emulated_assign(r2, uint32_t(r.high));
  emulated_assign(r3, uint32_t(r.high >> 32));
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
