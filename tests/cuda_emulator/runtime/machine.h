// Runs a grid of a kernel: blocks and threads as fibers, with the checks of a launch.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <map>
#include <stdexcept>
#include <string>

namespace emulator {

using Entry = void (*)(void** arguments);

struct Launch {
  std::string kernel;
  Entry entry;
  const void* library;  // an address inside of the kernel's library
  std::string library_path;
  int64_t grid[3], block[3];
  size_t dynamic_shared;
  void** arguments;
};

// A launch that a GPU or the checks refuse; `kind` is the name of Python's error.
struct LaunchError : std::runtime_error {
  std::string kind;
  LaunchError(std::string kind, const std::string& what) : std::runtime_error(what), kind(std::move(kind)) {}
};

struct Statistics {
  uint64_t launches = 0, blocks = 0, global_read = 0, global_written = 0, shared_read = 0, shared_written = 0;
  uint64_t mma = 0, ldmatrix = 0, ldmatrix_conflicts = 0, cp_async = 0, barriers = 0, atomics = 0, accesses = 0;
};

void launch(const Launch& what);

// Settings and figures for Python.
void set_seed(uint64_t seed);
void set_strict(bool plain_reads_of_atomics, uint64_t step_limit);
std::map<std::string, Statistics> statistics();
void clear_statistics();

}  // namespace emulator
