// Memory of the emulated device: one range of addresses for global and shared memory, with shadows that tell what lies where.
//
// state: a byte to a byte. Cells: who accessed a word last, in this launch (machine.cc checks them for races); a word that is
// accessed by less than a word keeps a cell to each byte.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>

namespace emulator {

enum State : uint8_t { UNALLOCATED = 0, UNWRITTEN = 1, WRITTEN = 2, FREED = 3, IN_FLIGHT = 4 };

// Threads that accessed a cell and are not known to be ordered before one another.
struct Accesses {
  uint32_t block;        // its number, counted over all launches; 0: none
  uint32_t block_epoch;  // barriers that the block had passed
  uint32_t warp_epoch;   // __syncwarp that the warp had passed
  uint16_t thread;       // in the block, or MANY_THREADS
  uint8_t warp;          // in the block, or MANY_WARPS
  uint8_t flags;
};
constexpr uint16_t MANY_THREADS = 0xffff;
constexpr uint8_t MANY_WARPS = 0xff;
constexpr uint8_t ATOMIC = 1, MANY_BLOCKS = 2;

struct Cell {
  Accesses writer, reader;
};

constexpr size_t SHARED_SLOT = 1 << 20;  // of each block that is resident
constexpr int SLOTS = 4;
constexpr uint16_t POISON = 0xffc1;  // NaN as float32, float16 and bfloat16, and an unlikely integer

extern char* base;  // shared slots first, then global memory
extern size_t total_bytes;
extern uint8_t* state;    // [total_bytes]
extern Cell* word_cells;  // [total_bytes / 4]
extern Cell* byte_cells;  // [total_bytes]
extern uint32_t* split;   // [total_bytes / 4] the launch in which the word's bytes got cells of their own

inline char* slot_base(int slot) { return base + slot * SHARED_SLOT; }
inline bool is_shared(size_t offset) { return offset < SLOTS * SHARED_SLOT; }

// While one of these lives, code of this process may touch memory of the device. Outside, host code that does is ended by a
// signal, as it would be by a GPU.
struct Opened {
  Opened();
  ~Opened();
};

void initialize();
void* allocate(size_t bytes);
void release(void* pointer);
void poison(void* pointer, size_t bytes);
size_t allocated_bytes();
// Whether all of it lies in one live allocation.
bool is_live(const void* pointer, size_t bytes);
// Where an address lies, in words.
std::string describe(const void* pointer);

}  // namespace emulator
