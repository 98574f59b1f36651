// The emulated device as TVM's runtime sees one: `device_api.cuda`, and modules of kind "cuda" that compile their source for
// the host when a kernel is first launched.
#include <dlfcn.h>
#include <string.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "graphs.h"
#include "machine.h"
#include "memory.h"

namespace tvm {
namespace runtime {

// As TVM's code generator makes it; the layout is that of its own class of this name.
class FunctionInfoObj : public ffi::Object {
 public:
  ffi::String name;
  ffi::Array<DLDataType> arg_types;
  ffi::Array<ffi::String> launch_param_tags;
  ffi::Array<int64_t> arg_extra_tags;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("runtime.FunctionInfo", FunctionInfoObj, ffi::Object);
};

class FunctionInfo : public ffi::ObjectRef {
 public:
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NULLABLE(FunctionInfo, ffi::ObjectRef, FunctionInfoObj);
};

namespace {

bool strict_copies = false;

void copy_to_device(void* to, const void* from, size_t size) {
  if (!emulator::is_live(to, size))
    TVM_FFI_THROW(RuntimeError) << "CUDA emulator: a copy of " << size << " bytes to the device leaves its allocation: it goes "
                                << emulator::describe(to);
  memcpy(to, from, size);
}

class EmulatedDevice final : public DeviceAPI {
 public:
  void SetDevice(Device dev) final {}

  void GetAttr(Device dev, DeviceAttrKind kind, ffi::Any* rv) final {
    switch (kind) {
      case kExist:
        *rv = int64_t(dev.device_id == 0);
        return;
      case kMaxThreadsPerBlock:
        *rv = 1024;
        return;
      case kWarpSize:
        *rv = 32;
        return;
      case kMaxSharedMemoryPerBlock:
        *rv = 48 << 10;
        return;
      case kComputeVersion:
        *rv = ffi::String("9.0");
        return;
      case kDeviceName:
        *rv = ffi::String("emulated CUDA device");
        return;
      case kMaxClockRate:
        *rv = 1000000;
        return;
      case kMultiProcessorCount:
        *rv = 4;
        return;
      case kMaxThreadDimensions:
        *rv = ffi::String("[1024, 1024, 64]");
        return;
      case kMaxRegistersPerBlock:
        *rv = 65536;
        return;
      case kApiVersion:
        *rv = 13000;
        return;
      case kL2CacheSizeBytes:
        *rv = 50 << 20;
        return;
      case kTotalGlobalMemory:
        *rv = int64_t(emulator::total_bytes);
        return;
      case kAvailableGlobalMemory:
        *rv = int64_t(emulator::total_bytes - emulator::allocated_bytes());
        return;
      default:
        return;
    }
  }

  void* AllocDataSpace(Device dev, size_t bytes, size_t alignment, DLDataType) final {
    emulator::refuse_in_capture("memory is allocated", true);
    try {
      return emulator::allocate(bytes);
    } catch (const std::runtime_error& e) {
      TVM_FFI_THROW(MemoryError) << e.what();
    }
    TVM_FFI_UNREACHABLE();
  }

  void FreeDataSpace(Device dev, void* pointer) final {
    try {
      emulator::release(pointer);
    } catch (const std::runtime_error& e) {
      TVM_FFI_THROW(RuntimeError) << e.what();
    }
  }

  // Without a pool, so that what a kernel forgets to write is found each time.
  void* AllocWorkspace(Device dev, size_t bytes, DLDataType type) final {
    return AllocDataSpace(dev, bytes, kTempAllocaAlignment, type);
  }
  void FreeWorkspace(Device dev, void* pointer) final { FreeDataSpace(dev, pointer); }

  void StreamSync(Device dev, TVMStreamHandle stream) final { emulator::refuse_in_capture("the stream is waited for"); }
  TVMStreamHandle CreateStream(Device dev) final { return reinterpret_cast<TVMStreamHandle>(new char); }
  void FreeStream(Device dev, TVMStreamHandle stream) final { delete static_cast<char*>(stream); }
  void SyncStreamFromTo(Device dev, TVMStreamHandle, TVMStreamHandle) final {}
  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t size, Device dev_from,
                      Device dev_to, DLDataType, TVMStreamHandle) final {
    const char* f = static_cast<const char*>(from) + from_offset;
    char* t = static_cast<char*>(to) + to_offset;
    bool from_device = dev_from.device_type == kDLCUDA, to_device = dev_to.device_type == kDLCUDA;
    if (!size) return;
    if (!from_device || !to_device) emulator::refuse_in_capture("a copy from or to the host");
    if (!emulator::captured([=] { Copy(f, t, size, from_device, to_device); })) Copy(f, t, size, from_device, to_device);
  }

 private:
  static void Copy(const char* f, char* t, size_t size, bool from_device, bool to_device) {
    emulator::Opened opened;
    if (from_device && !emulator::is_live(f, size))
      TVM_FFI_THROW(RuntimeError) << "CUDA emulator: a copy of " << size
                                  << " bytes from the device leaves its allocation: it begins " << emulator::describe(f);
    if (from_device && strict_copies && !to_device) {
      for (size_t i = 0; i < size; i++)
        if (emulator::state[f + i - emulator::base] != emulator::WRITTEN)
          TVM_FFI_THROW(RuntimeError) << "CUDA emulator: a copy to the host of memory that was never written, "
                                      << emulator::describe(f + i);
    }
    if (to_device) {
      copy_to_device(t, f, size);
      if (from_device)
        memmove(emulator::state + (t - emulator::base), emulator::state + (f - emulator::base), size);
      else
        memset(emulator::state + (t - emulator::base), emulator::WRITTEN, size);
    } else {
      memcpy(t, f, size);
    }
  }
};

// A kernel of a module, compiled for the host.
struct Compiled {
  emulator::Entry entry = nullptr;
  const void* library = nullptr;
  std::string path;
};

class EmulatedModule : public ffi::ModuleObj {
 public:
  EmulatedModule(ffi::Bytes code, ffi::String fmt, ffi::Map<ffi::String, FunctionInfo> fmap,
                 ffi::Map<ffi::String, ffi::String> source)
      : code_(std::move(code)), fmt_(std::move(fmt)), fmap_(std::move(fmap)), source_(std::move(source)) {}

  const char* kind() const final { return "cuda"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }

  ffi::String InspectSource(const ffi::String& format) const final {
    if (format == fmt_ || (format.empty() && fmt_ == "cuda")) return ffi::String(code_.data(), code_.size());
    if (auto it = source_.find(format.empty() ? ffi::String("cuda") : format); it != source_.end()) return (*it).second;
    return ffi::String();
  }

  // The bytes of TVM's own modules: format, functions, code.
  ffi::Bytes SaveToBytes() const final {
    std::string out;
    auto number = [&](auto n) { out.append(reinterpret_cast<const char*>(&n), sizeof n); };
    auto text = [&](const char* data, size_t size) {
      number(uint64_t(size));
      out.append(data, size);
    };
    text(fmt_.data(), fmt_.size());
    number(uint64_t(fmap_.size()));
    for (const auto& [name, info] : fmap_) {
      text(name.data(), name.size());
      text(info->name.data(), info->name.size());
      number(uint64_t(info->arg_types.size()));
      for (DLDataType t : info->arg_types) {
        number(uint8_t(t.code));
        number(uint8_t(t.bits));
        number(uint16_t(t.lanes));
      }
      number(uint64_t(info->launch_param_tags.size()));
      for (const ffi::String& tag : info->launch_param_tags) text(tag.data(), tag.size());
      number(uint64_t(info->arg_extra_tags.size()));
      for (int64_t tag : info->arg_extra_tags) number(int32_t(tag));
    }
    text(code_.data(), code_.size());
    return ffi::Bytes(std::move(out));
  }

  static ffi::Module Load(const ffi::Bytes& bytes) {
    const char *p = bytes.data(), *end = p + bytes.size();
    auto number = [&](auto kind) {
      if (end - p < ptrdiff_t(sizeof kind)) TVM_FFI_THROW(ValueError) << "a module of kind \"cuda\" is cut off";
      memcpy(&kind, p, sizeof kind);
      p += sizeof kind;
      return kind;
    };
    auto text = [&]() {
      uint64_t size = number(uint64_t());
      if (uint64_t(end - p) < size) TVM_FFI_THROW(ValueError) << "a module of kind \"cuda\" is cut off";
      std::string s(p, size);
      p += size;
      return s;
    };
    std::string fmt = text();
    ffi::Map<ffi::String, FunctionInfo> fmap;
    for (uint64_t n = number(uint64_t()); n; n--) {
      std::string name = text();
      auto info = ffi::make_object<FunctionInfoObj>();
      info->name = text();
      for (uint64_t k = number(uint64_t()); k; k--) {
        DLDataType t;
        t.code = number(uint8_t());
        t.bits = number(uint8_t());
        t.lanes = number(uint16_t());
        info->arg_types.push_back(t);
      }
      for (uint64_t k = number(uint64_t()); k; k--) info->launch_param_tags.push_back(text());
      for (uint64_t k = number(uint64_t()); k; k--) info->arg_extra_tags.push_back(number(int32_t()));
      fmap.Set(name, FunctionInfo(std::move(info)));
    }
    return ffi::Module(ffi::make_object<EmulatedModule>(ffi::Bytes(text()), fmt, fmap, ffi::Map<ffi::String, ffi::String>()));
  }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = fmap_.Get(name);
    if (!found.has_value()) return std::nullopt;
    FunctionInfo info = found.value();
    for (DLDataType t : info->arg_types) {
      bool wide = t.bits == 64 || t.bits == 32;
      bool known = t.lanes == 1 && (t.code == kDLOpaqueHandle || ((t.code == kDLInt || t.code == kDLFloat) && wide) ||
                                    (t.code == kDLUInt && t.bits == 32));
      if (!known)
        TVM_FFI_THROW(InternalError) << "Cannot handle " << ffi::DLDataTypeToString(t) << " as device function argument";
    }
    ffi::ObjectPtr<EmulatedModule> self = ffi::details::ObjectUnsafe::ObjectPtrFromUnowned<EmulatedModule>(this);
    auto compiled = std::make_shared<Compiled>();
    std::string kernel = name;
    return ffi::Function(
        [self, info, compiled, kernel](ffi::PackedArgs args, ffi::Any*) { self->Launch(kernel, info, *compiled, args); });
  }

 private:
  void Launch(const std::string& kernel, const FunctionInfo& info, Compiled& compiled, ffi::PackedArgs args) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!compiled.entry) Compile(kernel, compiled);
    }
    const TVMFFIAny* raw = reinterpret_cast<const TVMFFIAny*>(args.data());
    size_t count = info->arg_types.size();
    std::vector<uint64_t> values(count);
    for (size_t i = 0; i < count; i++) {
      DLDataType t = info->arg_types[i];
      if (t.code == kDLFloat && t.bits == 32) {
        float narrow = float(raw[i].v_float64);
        memcpy(&values[i], &narrow, 4);
      } else {
        values[i] = uint64_t(raw[i].v_int64);  // a narrow integer is its first bytes
      }
    }
    emulator::Launch what{kernel, compiled.entry, compiled.library, compiled.path, {1, 1, 1}, {1, 1, 1}, 0, nullptr};
    size_t at = count;
    for (const ffi::String& tag : info->launch_param_tags) {
      std::string t = tag;
      if (t == "tirx.use_programtic_dependent_launch" || t == "tirx.use_cooperative_launch") continue;
      int64_t size = raw[at++].v_int64;
      if (t == "tirx.use_dyn_shared_memory")
        what.dynamic_shared = size_t(size);
      else if (t.rfind("blockIdx.", 0) == 0)
        what.grid[t[9] - 'x'] = size ? size : 1;  // as TVM's runtime does
      else if (t.rfind("threadIdx.", 0) == 0)
        what.block[t[10] - 'x'] = size ? size : 1;
      else
        TVM_FFI_THROW(NotImplementedError) << "the CUDA emulator does not know the launch parameter " << t;
    }
    if (!emulator::captured([what, values] { Run(what, values); })) Run(what, values);
  }

  static void Run(emulator::Launch what, std::vector<uint64_t> values) {
    std::vector<void*> addresses;
    for (uint64_t& value : values) addresses.push_back(&value);
    what.arguments = addresses.data();
    try {
      emulator::launch(what);
    } catch (const emulator::LaunchError& e) {
      if (e.kind == "NotImplementedError") TVM_FFI_THROW(NotImplementedError) << "CUDA emulator: " << e.what();
      TVM_FFI_THROW(RuntimeError) << "CUDA emulator: " << e.what();
    }
  }

  void Compile(const std::string& kernel, Compiled& compiled) {
    static const ffi::Function compile = ffi::Function::GetGlobalRequired("cuda_emulator.compile");
    compiled.path = compile(InspectSource("cuda"), kernel).cast<ffi::String>();
    void* handle = dlopen(compiled.path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) TVM_FFI_THROW(RuntimeError) << "CUDA emulator: " << dlerror();
    compiled.entry = reinterpret_cast<emulator::Entry>(dlsym(handle, "emulator_entry"));
    Dl_info found;
    dladdr(reinterpret_cast<void*>(compiled.entry), &found);
    compiled.library = found.dli_fbase;
  }

  ffi::Bytes code_;
  ffi::String fmt_;
  ffi::Map<ffi::String, FunctionInfo> fmap_;
  ffi::Map<ffi::String, ffi::String> source_;
  std::mutex mutex_;
};

ffi::Map<ffi::String, ffi::Map<ffi::String, int64_t>> FiguresByKernel() {
  ffi::Map<ffi::String, ffi::Map<ffi::String, int64_t>> out;
  for (const auto& [kernel, s] : emulator::statistics()) {
    ffi::Map<ffi::String, int64_t> figures;
    auto set = [&](const char* name, uint64_t value) { figures.Set(name, int64_t(value)); };
    set("launches", s.launches);
    set("blocks", s.blocks);
    set("global_read", s.global_read);
    set("global_written", s.global_written);
    set("shared_read", s.shared_read);
    set("shared_written", s.shared_written);
    set("mma", s.mma);
    set("ldmatrix", s.ldmatrix);
    set("ldmatrix_conflicts", s.ldmatrix_conflicts);
    set("cp_async", s.cp_async);
    set("barriers", s.barriers);
    set("atomics", s.atomics);
    set("accesses", s.accesses);
    out.Set(kernel, figures);
  }
  return out;
}

EmulatedDevice* Device() {
  static EmulatedDevice* device = new EmulatedDevice();
  return device;
}

void Register(const char* name, ffi::Function function) { ffi::Function::SetGlobal(name, function, true); }

}  // namespace
}  // namespace runtime
}  // namespace tvm

// Called once by install(): what a real CUDA runtime registers, in its place.
extern "C" void cuda_emulator_register() {
  using namespace tvm;
  using namespace tvm::runtime;
  emulator::initialize();
  emulator::register_graphs();
  Register("device_api.cuda", ffi::Function::FromPacked([](ffi::PackedArgs, ffi::Any* rv) {
             *rv = static_cast<void*>(static_cast<DeviceAPI*>(runtime::Device()));
           }));
  Register("ffi.Module.create.cuda",
           ffi::Function::FromTyped([](ffi::Bytes code, ffi::String fmt, ffi::Map<ffi::String, FunctionInfo> fmap,
                                       ffi::Map<ffi::String, ffi::String> source) {
             return ffi::Module(ffi::make_object<EmulatedModule>(code, fmt, fmap, source));
           }));
  Register("ffi.Module.load_from_bytes.cuda",
           ffi::Function::FromTyped([](const ffi::Bytes& bytes) { return EmulatedModule::Load(bytes); }));
  Register("cuda_emulator.set_seed", ffi::Function::FromTyped([](int64_t seed) { emulator::set_seed(uint64_t(seed)); }));
  Register("cuda_emulator.set_strict", ffi::Function::FromTyped([](bool copies, bool plain_reads_of_atomics, int64_t steps) {
             strict_copies = copies;
             emulator::set_strict(plain_reads_of_atomics, uint64_t(steps));
           }));
  Register("cuda_emulator.statistics", ffi::Function::FromTyped(FiguresByKernel));
  Register("cuda_emulator.clear_statistics", ffi::Function::FromTyped(emulator::clear_statistics));
}
