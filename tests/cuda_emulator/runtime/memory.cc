// Allocations of the emulated device: red zones around them, and freed memory set aside before it is used again.
#include "memory.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>

namespace emulator {

char* base;
size_t total_bytes;
uint8_t* state;
Cell* word_cells;
Cell* byte_cells;
uint32_t* split;

namespace {

constexpr size_t ALIGNMENT = 256, RED_ZONE = 256, QUARANTINE = 64 << 20;
std::mutex mutex;
std::map<size_t, size_t> live;   // offset -> bytes
std::map<size_t, size_t> freed;  // those in the quarantine
std::deque<size_t> order;        // of the quarantine, the oldest first
std::map<size_t, size_t> holes;  // offset -> length, whole slices that may be used again
size_t top, live_bytes, quarantined;

std::mutex opening;
int opened;
size_t closed_bytes;  // from the beginning: what may have been touched
struct sigaction earlier;

void on_fault(int number, siginfo_t* info, void* context) {
  if (size_t(static_cast<char*>(info->si_addr) - base) < total_bytes) {
    const char text[] = "CUDA emulator: host code reads or writes memory of the device, which a GPU does not let it\n";
    if (write(2, text, sizeof text - 1) < 0) return;
  }
  // As before: another handler, or the end.
  sigaction(number, &earlier, nullptr);
}

size_t slice(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + RED_ZONE; }

void* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("the CUDA emulator found no address space; CUDA_EMULATOR_MEMORY asks for less");
  madvise(p, bytes, MADV_DONTDUMP);
  return p;
}

void add_hole(size_t offset, size_t length) {
  auto next = holes.lower_bound(offset);
  if (next != holes.end() && offset + length == next->first) {
    length += next->second;
    next = holes.erase(next);
  }
  if (next != holes.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += length;
      return;
    }
  }
  holes[offset] = length;
}

}  // namespace

Opened::Opened() {
  std::lock_guard<std::mutex> lock(opening);
  if (opened++ == 0 && closed_bytes) mprotect(base, closed_bytes, PROT_READ | PROT_WRITE);
}

Opened::~Opened() {
  std::lock_guard<std::mutex> lock(opening);
  if (--opened) return;
  closed_bytes = (std::max(closed_bytes, top) + 4095) / 4096 * 4096;
  mprotect(base, closed_bytes, PROT_NONE);
}

void initialize() {
  std::lock_guard<std::mutex> lock(mutex);
  if (base) return;
  const char* asked = getenv("CUDA_EMULATOR_MEMORY");
  total_bytes = asked ? strtoull(asked, nullptr, 10) : size_t(2) << 30;
  state = static_cast<uint8_t*>(reserve(total_bytes));
  word_cells = static_cast<Cell*>(reserve(total_bytes / 4 * sizeof(Cell)));
  byte_cells = static_cast<Cell*>(reserve(total_bytes * sizeof(Cell)));
  split = static_cast<uint32_t*>(reserve(total_bytes));
  top = SLOTS * SHARED_SLOT + RED_ZONE;
  base = static_cast<char*>(reserve(total_bytes));
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &earlier);
}

void poison(void* pointer, size_t bytes) {
  char* p = static_cast<char*>(pointer);
  constexpr uint64_t pattern = POISON * 0x0001000100010001ull;
  for (; bytes >= 8; bytes -= 8, p += 8) memcpy(p, &pattern, 8);
  memcpy(p, &pattern, bytes);
}

void* allocate(size_t bytes) {
  Opened writable;
  std::lock_guard<std::mutex> lock(mutex);
  size_t need = slice(bytes), offset = 0;
  for (auto& [start, length] : holes) {
    if (length < need) continue;
    offset = start;
    size_t rest = length - need;
    holes.erase(start);
    if (rest) holes[offset + need] = rest;
    break;
  }
  if (!offset) {
    if (need > total_bytes - top) {
      throw std::runtime_error("the emulated device is out of memory: " + std::to_string(bytes) + " bytes asked for, " +
                               std::to_string(live_bytes) + " in use of " + std::to_string(total_bytes));
    }
    offset = top;
    top += need;
  }
  live[offset] = bytes;
  live_bytes += bytes;
  poison(base + offset, bytes);
  memset(state + offset, UNALLOCATED, need);
  memset(state + offset, UNWRITTEN, bytes);
  return base + offset;
}

void release(void* pointer) {
  Opened writable;
  std::lock_guard<std::mutex> lock(mutex);
  size_t offset = static_cast<char*>(pointer) - base;
  auto found = live.find(offset);
  if (found == live.end()) throw std::runtime_error("freed memory of the emulated device that is not allocated");
  size_t bytes = found->second;
  live.erase(found);
  live_bytes -= bytes;
  poison(pointer, bytes);
  memset(state + offset, FREED, bytes);
  freed[offset] = bytes;
  order.push_back(offset);
  quarantined += bytes;
  while (quarantined > QUARANTINE) {
    size_t oldest = order.front(), length = freed[oldest];
    order.pop_front();
    freed.erase(oldest);
    quarantined -= length;
    add_hole(oldest, slice(length));
  }
}

size_t allocated_bytes() {
  std::lock_guard<std::mutex> lock(mutex);
  return live_bytes;
}

bool is_live(const void* pointer, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  size_t offset = static_cast<const char*>(pointer) - base;
  auto after = live.upper_bound(offset);
  if (after == live.begin()) return false;
  auto found = std::prev(after);
  return offset + bytes <= found->first + found->second;
}

std::string describe(const void* pointer) {
  std::lock_guard<std::mutex> lock(mutex);
  size_t offset = static_cast<const char*>(pointer) - base;
  if (offset >= total_bytes) return "which is not memory of the device";
  // The allocation whose beginning or end is nearest.
  std::string text = "far from any allocation";
  size_t nearest = SIZE_MAX;
  auto consider = [&](size_t start, size_t bytes, const char* kind) {
    size_t distance = offset < start ? start - offset : offset < start + bytes ? 0 : offset - start - bytes;
    if (distance >= nearest) return;
    nearest = distance;
    std::string of = "of " + std::string(kind) + " of " + std::to_string(bytes) + " bytes";
    if (offset < start)
      text = std::to_string(start - offset) + " bytes before the beginning " + of;
    else if (distance || offset == start + bytes)
      text = std::to_string(offset - start - bytes) + " bytes after the end " + of;
    else
      text = "at byte " + std::to_string(offset - start) + " " + of;
  };
  for (auto* map : {&live, &freed}) {
    const char* kind = map == &live ? "an allocation" : "a freed allocation";
    auto after = map->upper_bound(offset);
    if (after != map->end()) consider(after->first, after->second, kind);
    if (after != map->begin()) consider(std::prev(after)->first, std::prev(after)->second, kind);
  }
  return text;
}

}  // namespace emulator
