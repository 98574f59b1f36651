// What a translated kernel calls in the emulator's runtime. Kernels are compiled with -fsanitize=thread, the runtime is not.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};

extern "C" {
// Constant for the life of a thread.
uint3 emulator_thread_index() __attribute__((pure));
uint3 emulator_block_index() __attribute__((pure));
uint3 emulator_block_dim() __attribute__((pure));
uint3 emulator_grid_dim() __attribute__((pure));

// Shared memory of the thread's block: the declaration numbered `id`, and what the launch asked for.
void* emulator_shared_static(int id, size_t bytes, size_t alignment);
void* emulator_shared_dynamic();
// The 32-bit address that PTX knows a place in shared memory by.
uint32_t emulator_shared_address(const void* pointer);

// Barriers of the block. `place`: the line, by which threads at different barriers are told apart.
enum emulator_barrier_kind { BARRIER_PLAIN, BARRIER_AND, BARRIER_OR, BARRIER_COUNT };
int emulator_barrier(int place, int kind, int predicate);

// What the lanes of a warp do together.
enum emulator_shuffle_kind { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
enum emulator_vote_kind { VOTE_BALLOT, VOTE_ANY, VOTE_ALL };
enum emulator_reduce_kind {
  REDUCE_ADD,
  REDUCE_MIN,
  REDUCE_MAX,
  REDUCE_AND,
  REDUCE_OR,
  REDUCE_XOR,
  REDUCE_MIN_SIGNED,
  REDUCE_MAX_SIGNED
};
void emulator_warp_sync(uint32_t mask);
uint32_t emulator_active_mask();
uint64_t emulator_shuffle(int kind, uint32_t mask, uint64_t bits, int argument, int width);
uint32_t emulator_vote(int kind, uint32_t mask, int predicate);
uint32_t emulator_match_any(uint32_t mask, uint64_t bits);
uint32_t emulator_reduce(int kind, uint32_t mask, uint32_t value);

// Tensor cores. `type`: of the operands; registers as PTX lists them, two to a number. All are passed by value, so that the
// compiler may keep a thread's fragments in registers: what has an address costs a check at every access.
struct emulator_registers {
  uint64_t low, high;
};
enum emulator_mma_type { MMA_F16, MMA_BF16, MMA_TF32, MMA_S8 };
emulator_registers emulator_mma(int type_and_k, uint64_t a_low, uint64_t a_high, uint64_t b, uint64_t c_low, uint64_t c_high);
emulator_registers emulator_ldmatrix(int count, int transposed, uint32_t address);

// Copies that land at their wait.
void emulator_cp_async(uint32_t destination, const void* source, int bytes, int source_bytes);
void emulator_cp_async_commit();
void emulator_cp_async_wait(int groups);

// Atomics, and loads and stores that do not race with them.
enum emulator_atomic_kind {
  ATOMIC_ADD,
  ATOMIC_MIN,
  ATOMIC_MAX,
  ATOMIC_MIN_SIGNED,
  ATOMIC_MAX_SIGNED,
  ATOMIC_AND,
  ATOMIC_OR,
  ATOMIC_XOR,
  ATOMIC_EXCHANGE,
  ATOMIC_CAS,
  ATOMIC_ADD_FLOAT,
  ATOMIC_ADD_DOUBLE,
  ATOMIC_LOAD,
  ATOMIC_STORE
};
uint64_t emulator_atomic(int kind, int bytes, void* address, uint64_t value, uint64_t compare);

void emulator_pause();                                   // lets other threads run
void emulator_trap(const char* what);                    // ends the launch
void emulator_not_implemented(const char* instruction);  // ends the launch by NotImplementedError
}
