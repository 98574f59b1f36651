/* Runs one compiled kernel on tensors from a file and writes all of them back: what the TVM runtime does, for a test.
 *
 *     driver kernels.so NAME tensors.in tensors.out
 *
 * tensors.in: int64 count; for each int64 code, bits, rank and shape, as in DLPack; then the data of all, in order.
 * tensors.out: the data of all, in order. Exits with 1 and what is wrong on the standard error. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#define MOST 32 /* tensors of a kernel */
#define PAGE 4096
#define TASKS 3 /* that a parallel loop is cut into; they run one after another */

/* As in tvm/runtime/c_backend_api.h, which is C++. */
typedef struct {
  void* sync_handle;
  int32_t num_task;
} Group;
typedef int (*Task)(int task, Group* group, void* data);

static void fail(const char* what, const char* which) {
  fprintf(stderr, "%s%s\n", what, which);
  exit(1);
}

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) { fprintf(stderr, "%s: %s\n", kind, message); }

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static int launch(Task task, void* data, int count) {
  Group group = {NULL, TASKS};
  int failed = 0;
  for (int i = 0; i < TASKS; ++i) failed |= task(i, &group, data);
  return failed;
}

/* Whole pages, full of NaN. As in TVM, -2048 bytes are one page: what a kernel asks for where it has no rows, and leaves alone. */
static void* allocate(size_t bytes) {
  size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
  if (whole == 0) whole = PAGE;
  void* memory = aligned_alloc(64, whole);
  if (memory == NULL) fail("no memory", "");
  memset(memory, 0xff, whole);
  return memory;
}

static void* workspace(int device, int number, uint64_t bytes, int code, int bits) { return allocate(bytes); }

static int free_workspace(int device, int number, void* memory) {
  free(memory);
  return 0;
}

/* Functions that kernels look up by their names: a handle is the name. */
static int init_once(void** handle, int (*init)(void** result)) { return *handle == NULL ? init(handle) : 0; }

static int look_up(void* library, const char* name, void** handle) {
  *handle = (void*)name;
  return 0;
}

/* runtime.NumThreads, or what a guard tells of wrong arguments. */
static int call(void* name, TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  if (strcmp(name, "runtime.NumThreads") == 0) {
    result->type_index = kTVMFFIInt;
    result->v_int64 = TASKS;
    return 0;
  }
  fprintf(stderr, "%s:", (const char*)name);
  for (int32_t i = 0; i < count; ++i) fprintf(stderr, " %lld", (long long)arguments[i].v_int64);
  fputc('\n', stderr);
  return -1;
}

static void provide(void* library, const char* name, void* function) {
  void** place = dlsym(library, name);
  if (place != NULL) *place = function;
}

static void read_all(void* memory, size_t bytes, FILE* file) {
  if (fread(memory, 1, bytes, file) != bytes) fail("the file ends early", "");
}

int main(int argc, char** argv) {
  if (argc != 5) fail("expected four arguments", "");
  void* library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) fail("", dlerror());
  provide(library, "__TVMBackendParallelLaunch", launch);
  provide(library, "__TVMBackendAllocWorkspace", workspace);
  provide(library, "__TVMBackendFreeWorkspace", free_workspace);
  provide(library, "__TVMFFIHandleInitOnce", init_once);
  provide(library, "__TVMFFIEnvModLookupFromImports", look_up);
  provide(library, "__TVMFFIFunctionCall", call);

  char name[512];
  snprintf(name, sizeof name, "__tvm_ffi_%s", argv[2]);
  TVMFFISafeCallType kernel = (TVMFFISafeCallType)dlsym(library, name);
  if (kernel == NULL) fail("no such function: ", name);

  FILE* in = fopen(argv[3], "rb");
  if (in == NULL) fail("cannot read ", argv[3]);
  int64_t count, head[3], shapes[MOST][8];
  size_t bytes[MOST];
  DLTensor tensors[MOST];
  TVMFFIAny arguments[MOST], result;
  memset(tensors, 0, sizeof tensors);
  memset(arguments, 0, sizeof arguments);
  memset(&result, 0, sizeof result);
  read_all(&count, sizeof count, in);
  if (count > MOST) fail("too many tensors", "");
  for (int64_t i = 0; i < count; ++i) {
    read_all(head, sizeof head, in);
    read_all(shapes[i], head[2] * sizeof(int64_t), in);
    bytes[i] = head[1] / 8;
    for (int64_t axis = 0; axis < head[2]; ++axis) bytes[i] *= shapes[i][axis];
    tensors[i].device = (DLDevice){kDLCPU, 0};
    tensors[i].dtype = (DLDataType){head[0], head[1], 1};
    tensors[i].ndim = head[2];
    tensors[i].shape = shapes[i];
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[i];
  }
  int64_t strides[MOST][8];
  for (int64_t i = 0; i < count; ++i) {
    int64_t stride = 1;
    for (int axis = tensors[i].ndim - 1; axis >= 0; --axis) {
      strides[i][axis] = stride;
      stride *= shapes[i][axis];
    }
    tensors[i].strides = strides[i];
    tensors[i].data = allocate(bytes[i]);
    read_all(tensors[i].data, bytes[i], in);
  }
  fclose(in);

  if (kernel(NULL, arguments, count, &result) != 0) return 1;

  FILE* out = fopen(argv[4], "wb");
  if (out == NULL) fail("cannot write ", argv[4]);
  for (int64_t i = 0; i < count; ++i) fwrite(tensors[i].data, 1, bytes[i], out);
  return fclose(out) == 0 ? 0 : 1;
}
