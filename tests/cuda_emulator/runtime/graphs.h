// CUDA graphs as the virtual machine uses them: launches and copies that are noted while a function is captured, to run again.
#pragma once
#include <functional>

namespace emulator {

// Notes `work` if the thread captures, and says so; the caller then does not do it.
bool captured(std::function<void()> work);
// Throws where a capturing thread does what a GPU refuses during a capture.
void refuse_in_capture(const char* what, bool unless_relaxed = false);

void register_graphs();

}  // namespace emulator
