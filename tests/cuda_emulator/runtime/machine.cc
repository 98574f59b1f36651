// The emulated multiprocessor: threads as fibers under an adversarial scheduler, and what checks every access.
//
// Up to four blocks run at once, taken in a random order. A warp runs as long as one of its lanes can, lane after lane; then
// another warp, at random, goes on. Lanes of a warp therefore are never in step unless something makes them.
//
// Order: two accesses of one block are ordered by a barrier of the block between them, two of one warp also by __syncwarp.
// Nothing orders blocks. Accesses that are not ordered race, unless both read or both are atomic.
#include "machine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <random>
#include <vector>

#include "interface.h"
#include "memory.h"

namespace emulator {
namespace {

constexpr int MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP;
constexpr size_t STACK = 256 << 10;
constexpr size_t MAX_STATIC_SHARED = 48 << 10, MAX_DYNAMIC_SHARED = 227 << 10;
constexpr size_t SHARED_GAP = 128;  // between shared arrays, so that a step out of one is found

struct Copy {
  uint32_t destination;
  const char* source;
  int bytes, source_bytes;
};

enum class Collective : uint8_t { NONE, SYNC, SHUFFLE, VOTE, MATCH, REDUCE, MMA, LDMATRIX };
const char* const COLLECTIVES[] = {"nothing", "__syncwarp",  "a shuffle", "a vote",
                                   "a match", "a reduction", "mma.sync",  "ldmatrix"};

struct Block;
struct Warp;

struct Fiber {
  void* stack_pointer;
  Block* block;
  Warp* warp;
  int lane, number;  // in the warp; in the block
  uint3 index;
  bool done;
  // Where it waits.
  Collective collective;
  uint32_t mask;
  void* arguments;
  int barrier_place, barrier_kind, predicate;
  // Asynchronous copies: those not committed yet, and the groups.
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

struct Warp {
  Block* block;
  int number;
  uint32_t exists, runnable, exited, waiting;  // lanes
  uint32_t epoch;
  Fiber* lanes[WARP];
};

struct Block {
  bool live;
  int slot, threads, exited, arrived;
  uint32_t number, epoch;  // number: over all launches
  uint3 index;
  int barrier_result;
  Warp warps[MAX_WARPS];
  int warp_count;
  size_t shared_top, static_bytes;
  struct Declared {
    size_t offset, bytes;
  };
  std::vector<Declared> declared;
  size_t dynamic_offset;
};

// The state of the one launch that runs.
Block blocks[SLOTS];
Fiber fibers[SLOTS][MAX_THREADS];
char* stacks;
void* main_stack;
Fiber* current;
const Launch* now;
uint3 block_dim, grid_dim;
std::string error, error_kind;
const void* error_pc;
uint32_t next_number = 1, first_number, launch_number;
std::mt19937_64 random_numbers(1);
uint64_t seed = 1, steps, step_limit = 2000000000;
bool check_plain_reads = true;
bool reverse_lanes;
int resident_blocks;
Statistics* figures;
std::map<std::string, Statistics> all_figures;
std::mutex launching;

extern "C" void emulator_switch(void** save, void* load);
__asm__(
    ".text\n.globl emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size emulator_switch,.-emulator_switch\n");

std::string at(uint3 i) { return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")"; }

[[noreturn]] void to_main() {
  void* unused;
  emulator_switch(&unused, main_stack);
  abort();
}

// Ends the launch. Called on a fiber, which is never continued.
[[noreturn]] void fail(const std::string& what, const void* pc = nullptr, const char* kind = "RuntimeError") {
  error = "kernel " + now->kernel + ", block " + at(current->block->index) + ", thread " + at(current->index) + ": " + what;
  error_kind = kind;
  error_pc = pc;
  to_main();
}

// ---- Scheduler

Fiber* runnable_lane(Warp& warp, int after) {
  uint32_t r = warp.runnable;
  if (!r) return nullptr;
  if (reverse_lanes) {
    uint32_t below = after > 0 ? r & ((1u << after) - 1) : 0;
    return warp.lanes[31 - __builtin_clz(below ? below : r)];
  }
  uint32_t above = after < 31 ? r & ~((2u << after) - 1) : 0;
  return warp.lanes[__builtin_ctz(above ? above : r)];
}

// A lane of a warp that is drawn at random, or null if nothing can run.
Fiber* any_runnable() {
  int per_block = blocks[0].warp_count, count = resident_blocks * per_block;
  int start = random_numbers() % count;
  for (int i = 0; i < count; i++) {
    int w = (start + i) % count;
    Block& block = blocks[w / per_block];
    if (!block.live) continue;
    Warp& warp = block.warps[w % per_block];
    if (warp.runnable) return runnable_lane(warp, random_numbers() % WARP);
  }
  return nullptr;
}

void go(Fiber* to) {
  if (to == current) return;
  Fiber* from = current;
  current = to;
  emulator_switch(&from->stack_pointer, to->stack_pointer);
}

[[noreturn]] void stuck();

// The current fiber has left `runnable`, and comes back once it is there again.
void wait() {
  Fiber* to = runnable_lane(*current->warp, current->lane);
  if (!to) to = any_runnable();
  if (!to) stuck();
  go(to);
}

// Lets others run, and comes back at any time.
void yield() {
  Fiber* to = random_numbers() % 2 ? runnable_lane(*current->warp, current->lane) : any_runnable();
  if (to) go(to);
}

void step(uint64_t n = 1) {
  if ((steps += n) > step_limit) fail("ran for " + std::to_string(step_limit) + " steps: it waits for what does not happen");
}

void fiber_main() {
  now->entry(now->arguments);
  Fiber& f = *current;
  Block& block = *f.block;
  f.done = true;
  f.warp->runnable &= ~(1u << f.lane);
  f.warp->exited |= 1u << f.lane;
  if (block.arrived)
    fail("divergent barrier: it ended while " + std::to_string(block.arrived) + " threads of its block wait at one");
  if (++block.exited == block.threads) {
    block.live = false;
    to_main();
  }
  wait();
  abort();
}

// Nothing can run: somebody waits for what cannot come.
void stuck() {
  for (int s = 0; s < resident_blocks; s++) {
    if (!blocks[s].live) continue;
    for (int w = 0; w < blocks[s].warp_count; w++) {
      Warp& warp = blocks[s].warps[w];
      if (!warp.waiting) continue;
      Fiber* f = warp.lanes[__builtin_ctz(warp.waiting)];
      uint32_t missing = f->mask & ~warp.waiting;
      int lane = __builtin_ctz(missing ? missing : f->mask);
      current = f;
      char mask[16];
      snprintf(mask, sizeof mask, "0x%08x", f->mask);
      fail(std::string("partial-warp collective: ") + COLLECTIVES[int(f->collective)] + " of the lanes " + mask +
           " waits for lane " + std::to_string(lane) + ", which " +
           (warp.exited >> lane & 1    ? "has ended"
            : warp.waiting >> lane & 1 ? "waits elsewhere"
                                       : "waits at a barrier of the block"));
    }
  }
  for (int s = 0; s < resident_blocks; s++) {
    if (blocks[s].live && blocks[s].arrived) {
      for (int t = 0; t < blocks[s].threads; t++)
        if (!fibers[s][t].done) current = &fibers[s][t];
      fail("divergent barrier: " + std::to_string(blocks[s].arrived) + " of " + std::to_string(blocks[s].threads) +
           " threads wait at it, the others never come");
    }
  }
  fail("no thread can go on");
}

void start_block(int slot, int64_t linear) {
  Block& b = blocks[slot];
  b.live = true;
  b.slot = slot;
  b.threads = block_dim.x * block_dim.y * block_dim.z;
  b.exited = b.arrived = 0;
  b.number = next_number++;
  b.epoch = 0;
  b.index = {unsigned(linear % grid_dim.x), unsigned(linear / grid_dim.x % grid_dim.y),
             unsigned(linear / grid_dim.x / grid_dim.y)};
  b.warp_count = (b.threads + WARP - 1) / WARP;
  // What the block before it left behind.
  memset(state + (slot_base(slot) - base), UNALLOCATED, b.shared_top);
  b.declared.clear();
  b.static_bytes = 0;
  b.shared_top = SHARED_GAP;
  b.dynamic_offset = 0;
  if (now->dynamic_shared) {
    b.dynamic_offset = 1024;
    b.shared_top = 1024 + now->dynamic_shared + SHARED_GAP;
    poison(slot_base(slot) + 1024, now->dynamic_shared);
    memset(state + (slot_base(slot) - base) + 1024, UNWRITTEN, now->dynamic_shared);
  }
  for (int w = 0; w < b.warp_count; w++) {
    Warp& warp = b.warps[w];
    int lanes = std::min(WARP, b.threads - w * WARP);
    warp = Warp{};
    warp.block = &b;
    warp.number = w;
    warp.exists = warp.runnable = lanes == 32 ? ~0u : (1u << lanes) - 1;
    for (int l = 0; l < lanes; l++) warp.lanes[l] = &fibers[slot][w * WARP + l];
  }
  for (int t = 0; t < b.threads; t++) {
    Fiber& f = fibers[slot][t];
    f.block = &b;
    f.warp = &b.warps[t / WARP];
    f.lane = t % WARP;
    f.number = t;
    f.index = {t % block_dim.x, t / block_dim.x % block_dim.y, t / (block_dim.x * block_dim.y)};
    f.done = false;
    f.open.clear();
    f.groups.clear();
    // Stacks begin at different places of a page, or all of them would share a few lines of the cache.
    char* top = stacks + (size_t(slot) * MAX_THREADS + t + 1) * STACK - t % 61 * 64;
    void** s = reinterpret_cast<void**>(top);
    *--s = nullptr;  // in the place of a return address, by which a function finds its stack aligned
    *--s = reinterpret_cast<void*>(fiber_main);
    for (int k = 0; k < 6; k++) *--s = nullptr;
    f.stack_pointer = s;
  }
}

// ---- Checks of accesses

enum class Access { READ, WRITE, ATOMIC_READ, ATOMIC_WRITE };

bool ordered(const Accesses& a, const Fiber& f, bool shared) {
  const Block& block = *f.block;
  if (a.block < first_number) return true;
  if (a.flags & MANY_BLOCKS) return false;
  if (a.block != block.number) return shared;
  if (a.block_epoch < block.epoch || a.thread == f.number) return true;
  return a.warp == f.warp->number && a.warp_epoch < f.warp->epoch;
}

void replace(Accesses& a, const Fiber& f, bool atomic) {
  a = {f.block->number,    f.block->epoch,          f.warp->epoch,
       uint16_t(f.number), uint8_t(f.warp->number), uint8_t(atomic ? ATOMIC : 0)};
}

// Adds the current thread to accesses that do not race with its own.
void merge(Accesses& a, const Fiber& f, bool atomic, bool shared) {
  if (ordered(a, f, shared)) return replace(a, f, atomic);
  if (!atomic) a.flags &= ~ATOMIC;
  if (a.flags & MANY_BLOCKS) return;
  if (a.block != f.block->number) {
    a.flags |= MANY_BLOCKS;
    return;
  }
  if (a.thread != f.number) a.thread = MANY_THREADS;
  if (a.warp != f.warp->number) a.warp = MANY_WARPS;
  a.warp_epoch = f.warp->epoch;
}

std::string who(const Accesses& a) {
  if (a.flags & MANY_BLOCKS) return "threads of several blocks";
  std::string text;
  if (a.thread == MANY_THREADS)
    text = "several threads";
  else {
    unsigned t = a.thread;
    text = "thread " + at({t % block_dim.x, t / block_dim.x % block_dim.y, t / (block_dim.x * block_dim.y)});
  }
  return text + (a.block == current->block->number ? " of the same block" : " of another block");
}

std::string place(const void* p) {
  size_t offset = static_cast<const char*>(p) - base;
  if (!is_shared(offset)) return "global memory, " + describe(p);
  Block& b = *current->block;
  size_t inside = static_cast<const char*>(p) - slot_base(b.slot);
  for (size_t i = 0; i < b.declared.size(); i++) {
    auto& d = b.declared[i];
    if (inside + SHARED_GAP >= d.offset && inside < d.offset + d.bytes + SHARED_GAP / 2) {
      return "shared memory, byte " + std::to_string(int64_t(inside) - int64_t(d.offset)) + " of a shared array of " +
             std::to_string(d.bytes) + " bytes, number " + std::to_string(i);
    }
  }
  if (b.dynamic_offset)
    return "shared memory, byte " + std::to_string(int64_t(inside) - int64_t(b.dynamic_offset)) + " of " +
           std::to_string(now->dynamic_shared) + " dynamic bytes";
  return "shared memory";
}

[[noreturn]] void race(const char* how, const Accesses& other, const void* p, const void* pc) {
  fail(std::string("missing barrier: ") + how + " " + who(other) + ", with nothing to order them, at " + place(p), pc);
}

inline void check_cell(Cell& c, const Fiber& f, Access access, bool shared, const void* p, const void* pc) {
  switch (access) {
    case Access::READ:
      if (!ordered(c.writer, f, shared) && (check_plain_reads || !(c.writer.flags & ATOMIC)))
        race(c.writer.flags & ATOMIC ? "a plain read of what is changed atomically by" : "a read of what is written by",
             c.writer, p, pc);
      if ((c.reader.flags & MANY_BLOCKS) && !(c.reader.flags & ATOMIC) && c.reader.block >= first_number) return;
      merge(c.reader, f, false, shared);
      return;
    case Access::WRITE:
      if (!ordered(c.writer, f, shared)) race("a write to what is written by", c.writer, p, pc);
      if (!ordered(c.reader, f, shared)) race("a write to what is read by", c.reader, p, pc);
      replace(c.writer, f, false);
      c.reader.block = 0;
      c.reader.flags = 0;
      return;
    case Access::ATOMIC_READ:
      if (!ordered(c.writer, f, shared) && !(c.writer.flags & ATOMIC))
        race("a volatile read of what is written plainly by", c.writer, p, pc);
      merge(c.reader, f, true, shared);
      return;
    case Access::ATOMIC_WRITE:
      if (!ordered(c.writer, f, shared) && !(c.writer.flags & ATOMIC))
        race("an atomic change of what is written plainly by", c.writer, p, pc);
      if (!ordered(c.reader, f, shared) && !(c.reader.flags & ATOMIC) && check_plain_reads)
        race("an atomic change of what is read plainly by", c.reader, p, pc);
      merge(c.writer, f, true, shared);
      if (ordered(c.reader, f, shared)) {
        c.reader.block = 0;
        c.reader.flags = 0;
      }
      return;
  }
}

void check_races(size_t offset, size_t n, Access access, bool shared, const void* pc) {
  Fiber& f = *current;
  size_t end = offset + n;
  while (offset < end) {
    size_t word = offset / 4;
    bool whole = offset % 4 == 0 && end - offset >= 4;
    if (whole && split[word] != launch_number) {
      check_cell(word_cells[word], f, access, shared, base + offset, pc);
      offset += 4;
      continue;
    }
    if (split[word] != launch_number) {
      for (int i = 0; i < 4; i++) byte_cells[word * 4 + i] = word_cells[word];
      split[word] = launch_number;
    }
    for (size_t stop = std::min(end, word * 4 + 4); offset < stop; offset++)
      check_cell(byte_cells[offset], f, access, shared, base + offset, pc);
  }
}

[[noreturn]] void bad_state(size_t offset, size_t n, bool write, const void* pc) {
  for (size_t i = 0; i < n; i++) {
    uint8_t s = offset + i < total_bytes ? state[offset + i] : uint8_t(UNALLOCATED);
    std::string what = std::string(write ? "write" : "read") + " of " + std::to_string(n) + " bytes";
    const void* p = base + offset + i;
    if (s == UNALLOCATED) fail("out-of-bounds " + what + " at " + place(p), pc);
    if (s == FREED) fail("out-of-bounds " + what + ", of freed memory, at " + place(p), pc);
    if (s == IN_FLIGHT) fail(what + " whose cp.async has not been waited for, at " + place(p), pc);
    if (s == UNWRITTEN && !write) fail("read of unwritten memory, " + std::to_string(n) + " bytes at " + place(p), pc);
  }
  fail("an access that the emulator cannot explain", pc);
}

constexpr uint64_t ALL_WRITTEN = 0x0202020202020202ull * (WRITTEN / 2);

inline bool all_written(const uint8_t* s, size_t n) {
  for (; n >= 8; n -= 8, s += 8) {
    uint64_t v;
    memcpy(&v, s, 8);
    if (v != ALL_WRITTEN) return false;
  }
  for (; n; n--, s++)
    if (*s != WRITTEN) return false;
  return true;
}

// Everything that is checked of an access to memory of the device.
void check(const void* pointer, size_t n, Access access, const void* pc) {
  size_t offset = static_cast<const char*>(pointer) - base;
  if (offset + n > total_bytes || offset > total_bytes) bad_state(offset, n, access == Access::WRITE, pc);
  bool shared = is_shared(offset), write = access == Access::WRITE;
  if (shared && offset / SHARED_SLOT != size_t(current->block->slot)) fail("access to shared memory of another block", pc);
  if (access == Access::READ || access == Access::ATOMIC_READ) {
    if (!all_written(state + offset, n)) bad_state(offset, n, false, pc);
    (shared ? figures->shared_read : figures->global_read) += n;
  } else {
    for (size_t i = 0; i < n; i++)
      if (state[offset + i] != WRITTEN && state[offset + i] != UNWRITTEN) bad_state(offset, n, true, pc);
    if (!write && !all_written(state + offset, n)) bad_state(offset, n, false, pc);
    (shared ? figures->shared_written : figures->global_written) += n;
  }
  check_races(offset, n, access, shared, pc);
  if (write) memset(state + offset, WRITTEN, n);
}

void check_alignment(const void* p, size_t alignment, const char* what, const void* pc) {
  if (reinterpret_cast<uintptr_t>(p) % alignment)
    fail("misaligned " + std::string(what) + ": expected a multiple of " + std::to_string(alignment) + " bytes, given " +
             std::to_string(reinterpret_cast<uintptr_t>(p) % alignment) + " more, at " + place(p),
         pc);
}

inline bool on_stack(const void* p) { return size_t(static_cast<const char*>(p) - stacks) < STACK * MAX_THREADS * SLOTS; }

// Called for every load and store of translated code that is not on a stack.
void instrumented(const void* p, size_t n, size_t alignment, Access access, const void* pc) {
  if (size_t(static_cast<const char*>(p) - base) >= total_bytes) {
    // Constants of the kernel itself, which lie in its library.
    const char* library = static_cast<const char*>(now->library);
    if (llabs(static_cast<const char*>(p) - library) < 64 << 20) return;
    fail(std::string("out-of-bounds ") + (access == Access::READ ? "read" : "write") + " of " + std::to_string(n) +
             " bytes: an address that is not memory of the device",
         pc);
  }
  figures->accesses++;
  step();
  if (alignment > 1) check_alignment(p, alignment, access == Access::READ ? "read" : "write", pc);
  if (access == Access::ATOMIC_READ || access == Access::ATOMIC_WRITE) {
    yield();
    // A volatile store may be the first to a place.
    if (access == Access::ATOMIC_WRITE && size_t(static_cast<const char*>(p) - base) + n <= total_bytes) {
      uint8_t* s = state + (static_cast<const char*>(p) - base);
      for (size_t i = 0; i < n; i++)
        if (s[i] == UNWRITTEN) s[i] = WRITTEN;
    }
  }
  check(p, n, access, pc);
}

// ---- Collectives of a warp

template <class Run>
void collective(Collective what, uint32_t mask, void* arguments, Run run, const void* pc) {
  Fiber& f = *current;
  Warp& w = *f.warp;
  step();
  uint32_t me = 1u << f.lane;
  auto lanes = [](uint32_t m) {
    char text[16];
    snprintf(text, sizeof text, "0x%08x", m);
    return std::string(text);
  };
  if (!(mask & me))
    fail(std::string("partial-warp collective: ") + COLLECTIVES[int(what)] + " of the lanes " + lanes(mask) +
             " by a lane that is not among them",
         pc);
  if (mask & ~w.exists)
    fail(std::string("partial-warp collective: ") + COLLECTIVES[int(what)] + " of the lanes " + lanes(mask) + ", of which " +
             lanes(mask & ~w.exists) + " do not exist",
         pc);
  if (mask & w.exited)
    fail(std::string("partial-warp collective: ") + COLLECTIVES[int(what)] + " of the lanes " + lanes(mask) + ", of which " +
             lanes(mask & w.exited) + " have ended",
         pc);
  f.collective = what;
  f.mask = mask;
  f.arguments = arguments;
  w.waiting |= me;
  if ((w.waiting & mask) == mask) {
    for (uint32_t m = mask; m; m &= m - 1) {
      Fiber& other = *w.lanes[__builtin_ctz(m)];
      if (other.collective != what || other.mask != mask) {
        fail(std::string("partial-warp collective: ") + COLLECTIVES[int(what)] + " of the lanes " + lanes(mask) +
                 ", while lane " + std::to_string(other.lane) + " is at " + COLLECTIVES[int(other.collective)] +
                 " of the lanes " + lanes(other.mask),
             pc);
      }
    }
    run(w);
    w.waiting &= ~mask;
    w.runnable |= mask;
    return;
  }
  w.runnable &= ~me;
  wait();
}

float half_to_float(uint16_t bits) {
  _Float16 h;
  memcpy(&h, &bits, 2);
  return float(h);
}

float bits_to_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

}  // namespace

void set_seed(uint64_t value) {
  std::lock_guard<std::mutex> lock(launching);
  seed = value;
}

void set_strict(bool plain_reads_of_atomics, uint64_t limit) {
  std::lock_guard<std::mutex> lock(launching);
  check_plain_reads = plain_reads_of_atomics;
  if (limit) step_limit = limit;
}

std::map<std::string, Statistics> statistics() {
  std::lock_guard<std::mutex> lock(launching);
  return all_figures;
}

void clear_statistics() {
  std::lock_guard<std::mutex> lock(launching);
  all_figures.clear();
}

namespace {

// The lines of the translated source that a return address belongs to, the innermost call first.
std::string source_lines(const Launch& what, const void* pc) {
  if (!pc) return "";
  std::string path = what.library_path.substr(0, what.library_path.rfind('.')) + ".cc", text;
  size_t offset = static_cast<const char*>(pc) - static_cast<const char*>(what.library) - 1;
  char command[4096], line[65536];
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", what.library_path.c_str(), offset);
  FILE* pipe = popen(command, "r");
  if (!pipe) return "";
  std::vector<long> numbers;
  while (fgets(line, sizeof line, pipe)) {
    std::string where(line);
    size_t colon = where.find(".cc:");
    if (colon != std::string::npos) numbers.push_back(strtol(where.c_str() + colon + 4, nullptr, 10));
  }
  pclose(pipe);
  for (long number : numbers) {
    FILE* source = fopen(path.c_str(), "r");
    if (!source) break;
    for (long i = 0; i < number && fgets(line, sizeof line, source); i++) {
    }
    fclose(source);
    std::string content(line);
    size_t begin = std::min(content.find_first_not_of(" "), content.size());
    text += "\n  " + path + ":" + std::to_string(number) + ": " +
            content.substr(begin, content.find_last_not_of("\n") + 1 - begin).substr(0, 400);
  }
  return text;
}

}  // namespace

void launch(const Launch& what) {
  std::lock_guard<std::mutex> lock(launching);
  Opened opened;
  auto refuse = [&](const std::string& why) {
    throw LaunchError("RuntimeError", "kernel " + what.kernel + " cannot be launched (CUDA_ERROR_INVALID_VALUE): " + why);
  };
  auto limit = [&](const char* name, int64_t value, int64_t most) {
    if (value < 1 || value > most)
      refuse(std::string(name) + ": expected 1 to " + std::to_string(most) + ", given " + std::to_string(value));
  };
  limit("gridDim.x", what.grid[0], 2147483647);
  limit("gridDim.y", what.grid[1], 65535);
  limit("gridDim.z", what.grid[2], 65535);
  limit("blockDim.x", what.block[0], 1024);
  limit("blockDim.y", what.block[1], 1024);
  limit("blockDim.z", what.block[2], 64);
  limit("threads of a block", what.block[0] * what.block[1] * what.block[2], MAX_THREADS);
  if (what.dynamic_shared > MAX_DYNAMIC_SHARED)
    refuse("dynamic shared memory: expected at most " + std::to_string(MAX_DYNAMIC_SHARED) + " bytes, given " +
           std::to_string(what.dynamic_shared));

  if (!stacks) {
    void* p =
        mmap(nullptr, STACK * MAX_THREADS * SLOTS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw LaunchError("RuntimeError", "the CUDA emulator found no address space for stacks");
    madvise(p, STACK * MAX_THREADS * SLOTS, MADV_DONTDUMP);
    madvise(p, STACK * MAX_THREADS * SLOTS, MADV_NOHUGEPAGE);
    stacks = static_cast<char*>(p);
  }
  now = &what;
  grid_dim = {unsigned(what.grid[0]), unsigned(what.grid[1]), unsigned(what.grid[2])};
  block_dim = {unsigned(what.block[0]), unsigned(what.block[1]), unsigned(what.block[2])};
  figures = &all_figures[what.kernel];
  figures->launches++;
  launch_number++;
  first_number = next_number;
  steps = 0;
  error.clear();
  error_pc = nullptr;
  // The schedule follows from the seed and the kernel's name alone, so that a failure comes again.
  uint64_t hash = 0xcbf29ce484222325ull ^ seed;
  for (char c : what.kernel) hash = (hash ^ uint8_t(c)) * 0x100000001b3ull;
  random_numbers.seed(hash);
  reverse_lanes = random_numbers() % 2;

  int64_t total = what.grid[0] * what.grid[1] * what.grid[2];
  int64_t threads = what.block[0] * what.block[1] * what.block[2];
  resident_blocks = int(std::min<int64_t>(total, threads > 512 ? 2 : 2 + random_numbers() % 3));
  std::vector<uint32_t> order(total);
  for (int64_t i = 0; i < total; i++) order[i] = i;
  std::shuffle(order.begin(), order.end(), random_numbers);
  int64_t started = 0;
  for (int s = 0; s < SLOTS; s++) {
    blocks[s].live = false;
    blocks[s].warp_count = int((threads + WARP - 1) / WARP);
  }
  while (true) {
    bool any = false;
    for (int s = 0; s < resident_blocks; s++) {
      if (!blocks[s].live && started < total) {
        start_block(s, order[started++]);
        figures->blocks++;
      }
      any |= blocks[s].live;
    }
    if (!any) break;
    current = nullptr;
    Fiber* to = any_runnable();
    if (!to) {
      error = "kernel " + what.kernel + ": no thread can go on";
      error_kind = "RuntimeError";
      for (int s = 0; s < resident_blocks; s++)
        if (blocks[s].live && blocks[s].arrived)
          error = "kernel " + what.kernel + ", block " + at(blocks[s].index) + ": divergent barrier: the others never come";
      break;
    }
    current = to;
    emulator_switch(&main_stack, to->stack_pointer);
    if (!error.empty()) break;
  }
  current = nullptr;
  if (!error.empty()) {
    std::string text = error + source_lines(what, error_pc);
    error.clear();
    throw LaunchError(error_kind, text);
  }
}

}  // namespace emulator

using namespace emulator;

#define PC __builtin_return_address(0)

extern "C" {

uint3 emulator_thread_index() { return current->index; }
uint3 emulator_block_index() { return current->block->index; }
uint3 emulator_block_dim() { return block_dim; }
uint3 emulator_grid_dim() { return grid_dim; }

void* emulator_shared_static(int id, size_t bytes, size_t alignment) {
  Block& b = *current->block;
  if (size_t(id) >= b.declared.size()) b.declared.resize(id + 1);
  auto& d = b.declared[id];
  if (!d.bytes) {
    b.static_bytes += bytes;
    if (b.static_bytes > MAX_STATIC_SHARED)
      fail("static shared memory: expected at most " + std::to_string(MAX_STATIC_SHARED) + " bytes, given " +
               std::to_string(b.static_bytes),
           PC);
    alignment = std::max(alignment, SHARED_GAP);
    d.offset = (b.shared_top + alignment - 1) / alignment * alignment;
    d.bytes = bytes;
    b.shared_top = d.offset + bytes + SHARED_GAP;
    poison(slot_base(b.slot) + d.offset, bytes);
    memset(state + (slot_base(b.slot) - base) + d.offset, UNWRITTEN, bytes);
  }
  return slot_base(b.slot) + d.offset;
}

void* emulator_shared_dynamic() { return slot_base(current->block->slot) + 1024; }

uint32_t emulator_shared_address(const void* pointer) {
  ptrdiff_t offset = static_cast<const char*>(pointer) - slot_base(current->block->slot);
  if (offset < 0 || size_t(offset) >= SHARED_SLOT)
    fail("the address of shared memory was asked of what is not shared memory of the block", PC);
  return uint32_t(offset);
}

int emulator_barrier(int place, int kind, int predicate) {
  Fiber& f = *current;
  Block& b = *f.block;
  step();
  if (b.exited) fail("divergent barrier: " + std::to_string(b.exited) + " threads of its block have ended", PC);
  f.barrier_place = place;
  f.barrier_kind = kind;
  f.predicate = predicate;
  if (++b.arrived < b.threads) {
    f.warp->runnable &= ~(1u << f.lane);
    wait();
    return b.barrier_result;
  }
  int count = 0;
  for (int t = 0; t < b.threads; t++) {
    Fiber& other = fibers[b.slot][t];
    count += other.predicate != 0;
    if (other.barrier_place != place || other.barrier_kind != kind)
      fail("divergent barrier: thread " + at(other.index) + " waits at another one, line " +
               std::to_string(other.barrier_place) + " instead of " + std::to_string(place),
           PC);
  }
  b.barrier_result = kind == BARRIER_AND ? count == b.threads : kind == BARRIER_OR ? count > 0 : count;
  b.arrived = 0;
  b.epoch++;
  figures->barriers++;
  for (int w = 0; w < b.warp_count; w++) b.warps[w].runnable = b.warps[w].exists;
  // Another warp may be the first behind the barrier.
  yield();
  return b.barrier_result;
}

void emulator_warp_sync(uint32_t mask) {
  collective(
      Collective::SYNC, mask, nullptr,
      [mask](Warp& w) {
        if (mask == w.exists) w.epoch++;
      },
      PC);
}

uint32_t emulator_active_mask() { return current->warp->exists & ~current->warp->exited; }

uint64_t emulator_shuffle(int kind, uint32_t mask, uint64_t bits, int argument, int width) {
  struct Lane {
    uint64_t value, result;
    int kind, argument, width;
    const void* pc;
  } mine{bits, 0, kind, argument, width, PC};
  collective(
      Collective::SHUFFLE, mask, &mine,
      [mask](Warp& w) {
        for (uint32_t m = mask; m; m &= m - 1) {
          int lane = __builtin_ctz(m);
          Lane& l = *static_cast<Lane*>(w.lanes[lane]->arguments);
          int first = lane / l.width * l.width, in = lane % l.width, from;
          switch (l.kind) {
            case SHUFFLE_INDEX:
              from = first + (l.argument & (l.width - 1));
              break;
            case SHUFFLE_UP:
              from = in - l.argument < 0 ? lane : lane - l.argument;
              break;
            case SHUFFLE_DOWN:
              from = in + l.argument >= l.width ? lane : lane + l.argument;
              break;
            default:
              from = (lane ^ l.argument) < first + l.width ? lane ^ l.argument : lane;
          }
          if (!(mask >> from & 1)) {
            current = w.lanes[lane];
            fail("partial-warp collective: a shuffle reads lane " + std::to_string(from) + ", which is not in its mask", l.pc);
          }
          l.result = static_cast<Lane*>(w.lanes[from]->arguments)->value;
        }
      },
      PC);
  return mine.result;
}

uint32_t emulator_vote(int kind, uint32_t mask, int predicate) {
  struct Lane {
    int predicate;
    uint32_t result;
  } mine{predicate, 0};
  collective(
      Collective::VOTE, mask, &mine,
      [mask](Warp& w) {
        uint32_t ballot = 0;
        for (uint32_t m = mask; m; m &= m - 1)
          if (static_cast<Lane*>(w.lanes[__builtin_ctz(m)]->arguments)->predicate) ballot |= m & -m;
        for (uint32_t m = mask; m; m &= m - 1) static_cast<Lane*>(w.lanes[__builtin_ctz(m)]->arguments)->result = ballot;
      },
      PC);
  return kind == VOTE_BALLOT ? mine.result : kind == VOTE_ANY ? mine.result != 0 : mine.result == mask;
}

uint32_t emulator_match_any(uint32_t mask, uint64_t bits) {
  struct Lane {
    uint64_t bits;
    uint32_t result;
  } mine{bits, 0};
  collective(
      Collective::MATCH, mask, &mine,
      [mask](Warp& w) {
        for (uint32_t m = mask; m; m &= m - 1) {
          Lane& l = *static_cast<Lane*>(w.lanes[__builtin_ctz(m)]->arguments);
          for (uint32_t n = mask; n; n &= n - 1)
            if (static_cast<Lane*>(w.lanes[__builtin_ctz(n)]->arguments)->bits == l.bits) l.result |= n & -n;
        }
      },
      PC);
  return mine.result;
}

uint32_t emulator_reduce(int kind, uint32_t mask, uint32_t value) {
  struct Lane {
    uint32_t value, result;
    int kind;
  } mine{value, 0, kind};
  collective(
      Collective::REDUCE, mask, &mine,
      [mask](Warp& w) {
        bool first = true;
        uint32_t r = 0;
        for (uint32_t m = mask; m; m &= m - 1) {
          Lane& l = *static_cast<Lane*>(w.lanes[__builtin_ctz(m)]->arguments);
          uint32_t v = l.value;
          if (first)
            r = v;
          else
            switch (l.kind) {
              case REDUCE_ADD:
                r += v;
                break;
              case REDUCE_MIN:
                r = std::min(r, v);
                break;
              case REDUCE_MAX:
                r = std::max(r, v);
                break;
              case REDUCE_AND:
                r &= v;
                break;
              case REDUCE_OR:
                r |= v;
                break;
              case REDUCE_XOR:
                r ^= v;
                break;
              case REDUCE_MIN_SIGNED:
                r = std::min(int32_t(r), int32_t(v));
                break;
              default:
                r = std::max(int32_t(r), int32_t(v));
            }
          first = false;
        }
        for (uint32_t m = mask; m; m &= m - 1) static_cast<Lane*>(w.lanes[__builtin_ctz(m)]->arguments)->result = r;
      },
      PC);
  return mine.result;
}

emulator_registers emulator_mma(int type_and_k, uint64_t a_low, uint64_t a_high, uint64_t b, uint64_t c_low, uint64_t c_high) {
  struct Lane {
    int type_and_k;
    uint64_t a[2], b[1], c[2];
    emulator_registers d;
  } mine{type_and_k, {a_low, a_high}, {b}, {c_low, c_high}, {}};
  collective(
      Collective::MMA, ~0u, &mine,
      [type_and_k](Warp& w) {
        const int type = type_and_k >> 8, k = type_and_k & 0xff;
        auto reg = [](const uint64_t* registers, int i) { return uint32_t(registers[i / 2] >> 32 * (i % 2)); };
        // Fragments of m16n8: a lane's registers hold `pack` neighbours along k each, of rows lane / 4 and 8 more.
        int pack = type == MMA_TF32 ? 1 : type == MMA_S8 ? 4 : 2, step = 4 * pack;
        static float ma[16][32];
        static double mb[32][8];  // products are added as doubles, and rounded once
        auto lane_of = [&](int l) -> Lane& { return *static_cast<Lane*>(w.lanes[l]->arguments); };
        auto value = [type](uint32_t bits, int i) -> float {
          switch (type) {
            case MMA_F16:
              return half_to_float(uint16_t(bits >> 16 * i));
            case MMA_BF16:
              return bits_to_float(bits >> 16 * i << 16);
            case MMA_TF32:
              return bits_to_float(bits & ~0x1fffu);
            default:
              return float(int8_t(bits >> 8 * i));
          }
        };
        for (int l = 0; l < 32; l++) {
          Lane& lane = lane_of(l);
          if (lane.type_and_k != type_and_k) fail("partial-warp collective: lanes of a warp at different mma.sync");
          for (int r = 0; r < 2 * k / step; r++)
            for (int i = 0; i < pack; i++)
              ma[l / 4 + 8 * (r % 2)][l % 4 * pack + i + step * (r / 2)] = value(reg(lane.a, r), i);
          for (int r = 0; r < k / step; r++)
            for (int i = 0; i < pack; i++) mb[l % 4 * pack + i + step * r][l / 4] = value(reg(lane.b, r), i);
        }
        for (int row = 0; row < 16; row++) {
          // Of the lanes that hold this row: two columns each, in two registers.
          int first = row % 8 * 4, half = row / 8;
          double sums[8];
          for (int c = 0; c < 8; c++) {
            uint32_t bits = reg(lane_of(first + c / 2).c, half * 2 + c % 2);
            sums[c] = type == MMA_S8 ? double(int32_t(bits)) : double(bits_to_float(bits));
          }
          for (int j = 0; j < k; j++) {
            double a = ma[row][j];
            for (int c = 0; c < 8; c++) sums[c] += a * mb[j][c];
          }
          for (int c = 0; c < 8; c++) {
            float rounded = float(sums[c]);
            int32_t whole = int32_t(int64_t(sums[c]));
            uint32_t bits;
            memcpy(&bits, type == MMA_S8 ? static_cast<void*>(&whole) : &rounded, 4);
            emulator_registers& d = lane_of(first + c / 2).d;
            (half ? d.high : d.low) |= uint64_t(bits) << 32 * (c % 2);
          }
        }
        figures->mma++;
      },
      PC);
  return mine.d;
}

emulator_registers emulator_ldmatrix(int count, int transposed, uint32_t address) {
  struct Lane {
    int count, transposed;
    uint32_t address;
    emulator_registers registers;
  } mine{count, transposed, address, {}};
  // The lanes that give addresses read them on their own account.
  if (current->lane < 8 * count) {
    const char* p = slot_base(current->block->slot) + address;
    check_alignment(p, 16, "ldmatrix", PC);
    check(p, 16, Access::READ, PC);
  }
  collective(
      Collective::LDMATRIX, ~0u, &mine,
      [count, transposed](Warp& w) {
        for (int m = 0; m < count; m++) {
          uint16_t rows[8][8];
          uint32_t banks = 0;
          for (int r = 0; r < 8; r++) {
            Lane& lane = *static_cast<Lane*>(w.lanes[m * 8 + r]->arguments);
            memcpy(rows[r], slot_base(w.block->slot) + lane.address, 16);
            uint32_t bank = 1u << lane.address / 16 % 8;
            // Rows at one address are read at once.
            bool same = false;
            for (int q = 0; q < r; q++) same |= static_cast<Lane*>(w.lanes[m * 8 + q]->arguments)->address == lane.address;
            if (!same && banks & bank) figures->ldmatrix_conflicts++;
            banks |= bank;
          }
          for (int l = 0; l < 32; l++) {
            Lane& lane = *static_cast<Lane*>(w.lanes[l]->arguments);
            if (lane.count != count || lane.transposed != transposed)
              fail("partial-warp collective: lanes of a warp at different ldmatrix");
            int i = l / 4, j = l % 4 * 2;
            uint32_t low = transposed ? rows[j][i] : rows[i][j], high = transposed ? rows[j + 1][i] : rows[i][j + 1];
            (m / 2 ? lane.registers.high : lane.registers.low) |= uint64_t(low | high << 16) << 32 * (m % 2);
          }
        }
        figures->ldmatrix++;
      },
      PC);
  return mine.registers;
}

void emulator_cp_async(uint32_t destination, const void* source, int bytes, int source_bytes) {
  Fiber& f = *current;
  step();
  if (source_bytes < 0 || source_bytes > bytes)
    fail("cp.async: expected a source of 0 to " + std::to_string(bytes) + " bytes, given " + std::to_string(source_bytes), PC);
  char* to = slot_base(f.block->slot) + destination;
  check_alignment(to, bytes, "cp.async, destination", PC);
  if (source_bytes) {
    if (size_t(static_cast<const char*>(source) - base) >= total_bytes)
      fail("out-of-bounds read by cp.async: an address that is not memory of the device", PC);
    check_alignment(source, bytes, "cp.async, source", PC);
    check(source, source_bytes, Access::READ, PC);
  }
  size_t offset = to - base;
  if (offset + bytes > SLOTS * SHARED_SLOT) bad_state(offset, bytes, true, PC);
  check(to, bytes, Access::WRITE, PC);
  poison(to, bytes);
  memset(state + offset, IN_FLIGHT, bytes);
  f.open.push_back({destination, static_cast<const char*>(source), bytes, source_bytes});
  figures->cp_async++;
}

void emulator_cp_async_commit() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void emulator_cp_async_wait(int groups) {
  Fiber& f = *current;
  if (int(f.groups.size()) <= groups) return;
  int landing = int(f.groups.size()) - groups;
  for (int g = 0; g < landing; g++) {
    for (auto& c : f.groups[g]) {
      char* to = slot_base(f.block->slot) + c.destination;
      size_t offset = to - base;
      if (state[offset] == IN_FLIGHT) memset(state + offset, UNWRITTEN, c.bytes);
      check(to, c.bytes, Access::WRITE, PC);
      memcpy(to, c.source, c.source_bytes);
      memset(to + c.source_bytes, 0, c.bytes - c.source_bytes);
    }
  }
  f.groups.erase(f.groups.begin(), f.groups.begin() + landing);
}

uint64_t emulator_atomic(int kind, int bytes, void* address, uint64_t value, uint64_t compare) {
  step();
  if (size_t(static_cast<char*>(address) - base) >= total_bytes)
    fail("out-of-bounds atomic: an address that is not memory of the device", PC);
  check_alignment(address, bytes, "atomic", PC);
  yield();
  size_t offset = static_cast<char*>(address) - base;
  if (kind == ATOMIC_STORE)
    for (int i = 0; i < bytes; i++)
      if (state[offset + i] == UNWRITTEN) state[offset + i] = WRITTEN;
  check(address, bytes, kind == ATOMIC_LOAD ? Access::ATOMIC_READ : Access::ATOMIC_WRITE, PC);
  figures->atomics++;
  uint64_t old = 0;
  memcpy(&old, address, bytes);
  auto sign = [&](uint64_t v) { return bytes == 4 ? int64_t(int32_t(v)) : int64_t(v); };
  uint64_t next = value;
  switch (kind) {
    case ATOMIC_ADD:
      next = old + value;
      break;
    case ATOMIC_MIN:
      next = std::min(old, value);
      break;
    case ATOMIC_MAX:
      next = std::max(old, value);
      break;
    case ATOMIC_MIN_SIGNED:
      next = sign(old) < sign(value) ? old : value;
      break;
    case ATOMIC_MAX_SIGNED:
      next = sign(old) > sign(value) ? old : value;
      break;
    case ATOMIC_AND:
      next = old & value;
      break;
    case ATOMIC_OR:
      next = old | value;
      break;
    case ATOMIC_XOR:
      next = old ^ value;
      break;
    case ATOMIC_CAS:
      next = old == compare ? value : old;
      break;
    case ATOMIC_LOAD:
      next = old;
      break;
    case ATOMIC_ADD_FLOAT: {
      float sum = bits_to_float(uint32_t(old)) + bits_to_float(uint32_t(value));
      next = 0;
      memcpy(&next, &sum, 4);
      break;
    }
    case ATOMIC_ADD_DOUBLE: {
      double a, b;
      memcpy(&a, &old, 8);
      memcpy(&b, &value, 8);
      a += b;
      memcpy(&next, &a, 8);
      break;
    }
  }
  if (kind != ATOMIC_LOAD) memcpy(address, &next, bytes);
  return old;
}

void emulator_pause() {
  step();
  yield();
}

void emulator_trap(const char* what) { fail(std::string("trap: ") + what, PC); }
void emulator_not_implemented(const char* instruction) {
  fail(std::string("the CUDA emulator does not know ") + instruction, PC, "NotImplementedError");
}

// What -fsanitize=thread calls.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define HOOK(name, n, alignment, access)                         \
  void __tsan_##name(void* p) {                                  \
    if (!on_stack(p)) instrumented(p, n, alignment, access, PC); \
  }
#define ACCESS(n)                                             \
  HOOK(read##n, n, n, Access::READ)                           \
  HOOK(write##n, n, n, Access::WRITE)                         \
  HOOK(volatile_read##n, n, n, Access::ATOMIC_READ)           \
  HOOK(volatile_write##n, n, n, Access::ATOMIC_WRITE)         \
  HOOK(unaligned_read##n, n, 1, Access::READ)                 \
  HOOK(unaligned_write##n, n, 1, Access::WRITE)               \
  HOOK(unaligned_volatile_read##n, n, 1, Access::ATOMIC_READ) \
  HOOK(unaligned_volatile_write##n, n, 1, Access::ATOMIC_WRITE)
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* p, size_t n) {
  if (!on_stack(p)) instrumented(p, n, 1, Access::READ, PC);
}
void __tsan_write_range(void* p, size_t n) {
  if (!on_stack(p)) instrumented(p, n, 1, Access::WRITE, PC);
}
void __tsan_vptr_update(void*, void*) {}

// What -fsanitize=bounds and integer-divide-by-zero call.
void __ubsan_handle_out_of_bounds(void*, uintptr_t index) {
  fail("index " + std::to_string(intptr_t(index)) + " is out of the bounds of a local array", PC);
}
void __ubsan_handle_out_of_bounds_abort(void*, uintptr_t index) {
  fail("index " + std::to_string(intptr_t(index)) + " is out of the bounds of a local array", PC);
}
void __ubsan_handle_divrem_overflow(void*, uintptr_t, uintptr_t) { fail("an integer is divided by zero", PC); }
void __ubsan_handle_divrem_overflow_abort(void*, uintptr_t, uintptr_t) { fail("an integer is divided by zero", PC); }
}
