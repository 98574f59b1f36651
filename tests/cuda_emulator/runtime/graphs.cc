// The two functions of the virtual machine for CUDA graphs. A function is run once, then captured: what it launches is noted
// and not done. From then on the notes are played, with the arguments that they were taken with, as a graph has them.
#include "graphs.h"

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/vm/vm.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace emulator {

namespace {

using namespace tvm;
using Work = std::vector<std::function<void()>>;
thread_local Work* capturing = nullptr;

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

}  // namespace

bool captured(std::function<void()> work) {
  if (!capturing) return false;
  capturing->push_back(std::move(work));
  return true;
}

void refuse_in_capture(const char* what) {
  if (capturing)
    TVM_FFI_THROW(RuntimeError) << "CUDA emulator: " << what << " while a CUDA graph is captured, which a GPU refuses";
}

void register_graphs() {
  ffi::Function::SetGlobal("vm.builtin.cuda_graph.run_or_capture", ffi::Function::FromPacked(run_or_capture), true);
  ffi::Function::SetGlobal("vm.builtin.cuda_graph.get_cached_alloc", ffi::Function::FromPacked(get_cached_alloc), true);
}

}  // namespace emulator
