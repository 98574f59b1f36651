// The two functions of the virtual machine for CUDA graphs. A function is run once, then captured: what it launches is noted
// and not done. From then on the notes are played, with the arguments that they were taken with, as a graph has them. And what
// stands for the functions of CUDA's runtime: begin, end, launch.
#include "graphs.h"

#include "memory.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/vm/vm.h>

#include <string.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace emulator {

namespace {

using namespace tvm;
using Work = std::vector<std::function<void()>>;
thread_local Work* capturing = nullptr;
thread_local bool relaxed = false;  // memory may be allocated meanwhile

// Graphs that were captured by begin and end.
std::mutex graphs_mutex;
std::map<int64_t, std::shared_ptr<Work>> made;

// The graphs and the kept allocations of one virtual machine.
class GraphsObj : public runtime::vm::VMExtensionNode {
 public:
  struct Graph {
    ffi::Any result;
    Work work;
  };
  std::map<std::pair<int64_t, std::vector<int64_t>>, Graph> graphs;  // by number of the function and by sizes
  std::map<int64_t, ffi::Any> allocations;

  static constexpr const bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("cuda_emulator.Graphs", GraphsObj, runtime::vm::VMExtensionNode);
};

class Graphs : public runtime::vm::VMExtension {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(Graphs, runtime::vm::VMExtension, GraphsObj);
  static Graphs Create() { return Graphs(ffi::make_object<GraphsObj>()); }
};

ffi::Any call(runtime::vm::VirtualMachine* machine, const ffi::ObjectRef& function,
              const std::vector<ffi::AnyView>& arguments) {
  ffi::Any result;
  machine->InvokeClosurePacked(function, ffi::PackedArgs(arguments.data(), int(arguments.size())), &result);
  return result;
}

// Arguments: machine, function, its arguments as a tuple, its number, sizes where they vary.
void run_or_capture(ffi::PackedArgs args, ffi::Any* result) {
  auto* machine = runtime::vm::VirtualMachine::GetContextPtr(args[0]);
  Graphs graphs = machine->GetOrCreateExtension<Graphs>();
  std::vector<int64_t> sizes;
  if (args.size() > 4) {
    ffi::Shape shape = args[4].cast<ffi::Shape>();
    sizes.assign(shape.begin(), shape.end());
  }
  auto key = std::make_pair(args[3].cast<int64_t>(), sizes);
  auto found = graphs->graphs.find(key);
  if (found == graphs->graphs.end()) {
    ffi::ObjectRef function = args[1].cast<ffi::ObjectRef>();
    ffi::Array<ffi::Any> given = args[2].cast<ffi::Array<ffi::Any>>();
    std::vector<ffi::AnyView> arguments(given.begin(), given.end());
    call(machine, function, arguments);
    GraphsObj::Graph graph;
    capturing = &graph.work;
    try {
      graph.result = call(machine, function, arguments);
    } catch (...) {
      capturing = nullptr;
      throw;
    }
    capturing = nullptr;
    found = graphs->graphs.emplace(key, std::move(graph)).first;
  }
  for (auto& work : found->second.work) work();
  *result = found->second.result;
}

void get_cached_alloc(ffi::PackedArgs args, ffi::Any* result) {
  auto* machine = runtime::vm::VirtualMachine::GetContextPtr(args[0]);
  Graphs graphs = machine->GetOrCreateExtension<Graphs>();
  int64_t number = args[2].cast<int64_t>();
  auto found = graphs->allocations.find(number);
  if (found == graphs->allocations.end()) {
    found = graphs->allocations.emplace(number, call(machine, args[1].cast<ffi::ObjectRef>(), {})).first;
  }
  *result = found->second;
}

// As cudaStreamBeginCapture does it in its relaxed mode.
void begin() {
  if (capturing) TVM_FFI_THROW(RuntimeError) << "CUDA emulator: this thread captures already";
  capturing = new Work();
  relaxed = true;
}

int64_t end() {
  std::shared_ptr<Work> work(capturing);
  capturing = nullptr;
  relaxed = false;
  std::lock_guard<std::mutex> lock(graphs_mutex);
  static int64_t count = 0;
  made[++count] = work;
  return count;
}

void copy(int64_t to, int64_t from, int64_t bytes) {
  auto work = [=] {
    Opened opened;
    char *t = reinterpret_cast<char*>(to), *f = reinterpret_cast<char*>(from);
    if (!is_live(t, bytes) || !is_live(f, bytes))
      TVM_FFI_THROW(RuntimeError) << "CUDA emulator: a copy in a graph leaves its allocation";
    memcpy(t, f, bytes);
    memmove(state + (t - base), state + (f - base), bytes);
  };
  if (!captured(work)) work();
}

void launch_graph(int64_t number) {
  std::shared_ptr<Work> work;
  {
    std::lock_guard<std::mutex> lock(graphs_mutex);
    work = made.at(number);
  }
  for (auto& step : *work) step();
}

void destroy(int64_t number) {
  std::lock_guard<std::mutex> lock(graphs_mutex);
  made.erase(number);
}

}  // namespace

bool captured(std::function<void()> work) {
  if (!capturing) return false;
  capturing->push_back(std::move(work));
  return true;
}

void refuse_in_capture(const char* what, bool unless_relaxed) {
  if (capturing && !(unless_relaxed && relaxed))
    TVM_FFI_THROW(RuntimeError) << "CUDA emulator: " << what << " while a CUDA graph is captured, which a GPU refuses";
}

void register_graphs() {
  ffi::Function::SetGlobal("vm.builtin.cuda_graph.run_or_capture", ffi::Function::FromPacked(run_or_capture), true);
  ffi::Function::SetGlobal("cuda_emulator.graph_begin", ffi::Function::FromTyped(begin), true);
  ffi::Function::SetGlobal("cuda_emulator.graph_end", ffi::Function::FromTyped(end), true);
  ffi::Function::SetGlobal("cuda_emulator.graph_copy", ffi::Function::FromTyped(copy), true);
  ffi::Function::SetGlobal("cuda_emulator.graph_launch", ffi::Function::FromTyped(launch_graph), true);
  ffi::Function::SetGlobal("cuda_emulator.graph_destroy", ffi::Function::FromTyped(destroy), true);
  ffi::Function::SetGlobal("vm.builtin.cuda_graph.get_cached_alloc", ffi::Function::FromPacked(get_cached_alloc), true);
}

}  // namespace emulator
