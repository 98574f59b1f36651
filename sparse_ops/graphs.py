"""CUDA graphs: what repeats with equal shapes, as the steps of a sampler do, is launched by one call of the driver.

    step = Captured(lambda x, t: [program["second"](program["first"](x), t)], program.device)
    (x,) = step(x, t)  # numpy arrays

A graph has the addresses of all that it reads and writes. Inputs are copied into memory that belongs to it. What its calls took
from TVM's pool is taken out of there again after the capture, and kept; if another thread was faster, the graph is given up.
Captured is a stream that no other work waits for, in the mode that leaves other threads alone. Graphs run on the stream that
all calls run on, one after another.

Only calls that do all their work on the device can be captured. The first call with some shapes runs as ever, and looks at
every function that the virtual machine calls: one that is not known to be harmless refuses these shapes for good. So do
programs that were compiled without `devices.use_cuda_graphs`, whose kernels take memory that cannot be kept. What kernels
report of errors is copied within the graph and read after it.
"""

import ctypes
import threading
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from tir_kernels.guards import READ_STATUS, STATUS_CODE, STATUS_SIZE, read_status, reading_once

from .devices import HOST, cuda_graphs_in_use, is_on, placed
from .program import RECORDING, Function, Program
from .transform.cuda.scratch import WITHOUT_SCRATCH

GRAPHS = 4  # of one `Captured`: the least recently used is given up for another
TRIES = 3  # captures of the same shapes whose memory could not be kept
SPARE = 16  # pieces of memory that are looked at beyond those that are wanted
PAGE = 4096  # TVM's pool keeps pieces of the same number of pages together

# Functions of the virtual machine that read and write nothing on the device, besides kernels.
BUILTINS = {
    f"vm.builtin.{name}"
    for name in (
        "alloc_shape_heap", "alloc_storage", "alloc_tensor", "call_tir_dyn", "check_shape_info", "check_tensor_info",
        "check_tuple_info", "copy", "make_shape", "make_prim_value", "match_prim_value", "match_shape", "null_value", "reshape",
        "shape_of", "tuple_getitem", "make_tuple",
    )
}  # fmt: skip
ALLOC_STORAGE, ALLOC_TENSOR = "vm.builtin.alloc_storage", "vm.builtin.alloc_tensor"
RUN, SKIP = 0, 1  # what an instrument of the virtual machine answers

Tensors = Sequence[tvm.runtime.Tensor]


class Captured:
    """A function of tensors on a device that calls functions of programs, and returns a list of tensors.

    It is called with numpy arrays and returns such. What `function` reads besides its arguments must stay as it is and lie on
    the device. Threads may share it; they wait for one another.
    """

    def __init__(self, function: Callable[..., Tensors], device: tvm.runtime.Device, graphs: int = GRAPHS):
        self.function, self.device, self.limit = function, device, graphs
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple, _Graph] = OrderedDict()  # by shapes and dtypes

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        if RECORDING.by is not None:
            RECORDING.by.refuse()
        if not cuda_graphs_in_use() or self.device == HOST:
            return self.plain(arrays)
        key = tuple((array.shape, str(array.dtype)) for array in arrays)
        with self._lock:
            graph = self._kept.pop(key, None) or _Graph(self.function, self.device)
            results = None if graph.refused else graph.run(arrays)  # one that raises an error is dropped
            if graph.refused:
                graph.forget()
            self._kept[key] = graph
            if len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return self.plain(arrays) if results is None else results

    def plain(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The results, without a graph."""
        with reading_once():
            return [result.numpy() for result in self.function(*(placed(tvm.runtime.tensor(a), self.device) for a in arrays))]

    @property
    def graphs(self) -> int:
        """How many are kept."""
        return sum(graph.handle is not None for graph in self._kept.values())


class _Refused(Exception):
    """Cannot be captured."""


class _Graph:
    """A function with arguments of given shapes: looked at in the first call, captured in the second, and played."""

    def __init__(self, function: Callable[..., Tensors], device: tvm.runtime.Device):
        self.function, self.device = function, device
        self.machines: dict = {}  # of this graph alone, which keep the constants of their programs
        self.latest: dict = {}  # what each machine returned last, which it keeps
        self.refused, self.handle, self.tries, self.reporting = False, None, 0, 0
        self.stream: int | None = None  # during the capture
        self.inputs = self.results = self.reports = self.held = None

    def forget(self) -> None:
        """There is to be no graph: gives up its memory."""
        self.__init__(self.function, self.device)
        self.refused = True

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """The results, or None where the call is to run without a graph."""
        if any(machines.observer is not None for machines in self.machines):
            return None  # observers are told of calls
        if not self.machines:
            return self._look(arrays)
        if self.handle is None and not self._capture(arrays):
            return None
        for buffer, array in zip(self.inputs, arrays, strict=True):
            buffer.copyfrom(array)
        cuda().launch(self.handle, self.device)
        for report in self.reports.numpy() if self.reporting else ():
            if report[STATUS_CODE]:
                read_status(tvm.runtime.tensor(report))
        return [result.numpy() for result in self.results]

    def _look(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """The first call, which also gets modules and memory ready."""
        tensors = [placed(tvm.runtime.tensor(array), self.device) for array in arrays]
        try:
            with self._recorded():
                results = self.function(*tensors)
        except Exception:
            if self.refused:
                return None
            raise
        self.refused = not self.machines
        return None if self.refused else [result.numpy() for result in results]

    def _capture(self, arrays: Sequence[np.ndarray]) -> bool:
        """Whether the graph is there. Nothing has run if it is not, so the caller can go on without."""
        self.inputs = [tvm.runtime.empty(array.shape, str(array.dtype), self.device) for array in arrays]
        self.reports = tvm.runtime.empty((max(self.reporting, 1), STATUS_SIZE), "int64", self.device)
        self.sizes, self.memory, self.reported = {}, {}, 0
        handle = None
        try:
            self.stream = cuda().begin(self.device)
            try:
                with self._recorded(), tvm_ffi.use_raw_stream(self.device, self.stream):
                    self.results = self.function(*self.inputs)
            finally:
                stream, self.stream = self.stream, None
                handle = cuda().end(stream, self.device)
        except Exception as error:
            if not self.refused:
                warnings.warn(f"CUDA graphs: not captured, calls go on without: {error}", RuntimeWarning, stacklevel=4)
            self.refused = True
        else:
            kept = _tensors([*self.results, *self.latest.values()])
            self.held = _held(self.memory, {tensor.data_ptr() for tensor in kept}, self.device)
            self.tries += 1
            self.refused = self.held is None and self.tries == TRIES
            if self.held is not None:
                self.handle = handle
                weakref.finalize(self, cuda().destroy, handle)
                return True
        if handle is not None:
            cuda().destroy(handle)
        return False

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Inside, calls of this thread come to `call`."""
        RECORDING.by = self
        try:
            yield
        finally:
            RECORDING.by = None

    def call(self, machines, name: str, args: tuple):
        """A call of a function of a program."""
        machine = self.machines.get(machines)
        if machine is None:
            if machines.device != self.device or machines.observer is not None or self.stream is not None:
                self.refuse()
            machine = self.machines[machines] = machines.another()
            try:
                machine[WITHOUT_SCRATCH]
            except AttributeError:
                self.refuse()
            code, this = machines.load(), weakref.ref(self)  # the machine is not to keep alive what it belongs to
            machine.machine.set_instrument(lambda *told: this()._note(code, *told))
        if not all(is_on(tensor, self.device) for tensor in _tensors(args)):
            self.refuse()
        result = self.latest[machines] = machine[name](*args)
        return result

    def refuse(self) -> None:
        """Ends the call: it cannot be captured."""
        self.refused = True
        raise _Refused

    def _note(self, code: tvm.runtime.Module, function, name: str, before: bool, result, *args) -> int:
        """The virtual machine is about to call a function, or has called it."""
        if before:
            if name == READ_STATUS:
                return self._report(args[0])
            if name not in BUILTINS and not code.implements_function(name, True):
                self.refuse()
        elif name == ALLOC_STORAGE and self.stream is not None:
            self.sizes[result.__chandle__()] = int(args[1][0])
        elif name == ALLOC_TENSOR and self.stream is not None:
            if args[1]:
                self.refuse()
            address, size = result.data_ptr(), self.sizes[args[0].__chandle__()]
            self.memory[address] = max(size, self.memory.get(address, 0))
        return RUN

    def _report(self, status: tvm.runtime.Tensor) -> int:
        if self.stream is None:
            self.reporting += 1
            return RUN
        if self.reported == self.reporting:
            self.refuse()
        row = STATUS_SIZE * 8
        cuda().copy(self.reports.data_ptr() + self.reported * row, status.data_ptr(), row, self.stream)
        self.reported += 1
        return SKIP


def _tensors(value) -> list[tvm.runtime.Tensor]:
    """The tensors in an argument or result."""
    if isinstance(value, tvm.runtime.Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple | list | tvm_ffi.Array) else []


def _held(memory: dict[int, int], kept: set[int], device: tvm.runtime.Device) -> list[tvm.runtime.Tensor] | None:
    """Tensors that keep all of the memory, bytes by address, but what is kept already; None if some of it is in use."""
    pages = {address: -(-size // PAGE) for address, size in memory.items() if size and address not in kept}
    held, others = {}, []
    for size, count in Counter(pages.values()).items():
        missing = count
        for _ in range(2 * count + SPARE):
            tensor = _allocator(device)(tvm_ffi.Shape([size * PAGE]))
            others.append(tensor)  # is not to be handed out again meanwhile
            if pages.get(tensor.data_ptr()) == size:
                held[tensor.data_ptr()] = tensor
                missing -= 1
                if not missing:
                    break
    return list(held.values()) if len(held) == len(pages) else None


@cache
def _allocator(device: tvm.runtime.Device) -> Function:
    """Takes a number of bytes, as a shape, out of the pool that programs take theirs from."""
    builder, size = relax.BlockBuilder(), tvm.tirx.Var("size", "int64")
    shape = relax.Var("shape", relax.ShapeType([size]))
    with builder.function("allocate", [shape]):
        builder.emit_func_output(builder.emit(relax.op.builtin.alloc_tensor(relax.ShapeExpr([size]), "uint8", 0)))
    return Program(tvm.compile(builder.get(), target="llvm"), device)["allocate"]


class Cuda:
    """The functions of CUDA's runtime that capture and play graphs. RuntimeError where one of them fails."""

    RELAXED, NON_BLOCKING, BETWEEN_DEVICES = 2, 1, 3  # numbers of cudaStreamCaptureModeRelaxed and others

    def __init__(self):
        self.library = ctypes.CDLL("libcudart.so.13")  # the one that TVM uses

    def _call(self, name: str, *args) -> None:
        if code := getattr(self.library, name)(*args):
            self.library.cudaGetLastError()  # forgets it
            self.library.cudaGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"{name}: {self.library.cudaGetErrorString(code).decode()}")

    def begin(self, device: tvm.runtime.Device) -> int:
        """A stream, of which all that follows is captured."""
        stream = ctypes.c_void_p()
        self._call("cudaSetDevice", device.index)
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), self.NON_BLOCKING)
        self._call("cudaStreamBeginCapture", stream, self.RELAXED)
        return stream.value

    def end(self, stream: int, device: tvm.runtime.Device) -> int:
        """The graph of what was captured, ready to be launched."""
        graph, handle = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaSetDevice", device.index)
        try:
            self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
            self._call("cudaGraphInstantiate", ctypes.byref(handle), graph, ctypes.c_ulonglong(0))
        finally:
            if graph.value:
                self._call("cudaGraphDestroy", graph)
            self._call("cudaStreamDestroy", ctypes.c_void_p(stream))
        return handle.value

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """A copy within the device, in order with all else on the stream."""
        arguments = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), self.BETWEEN_DEVICES
        self._call("cudaMemcpyAsync", *arguments, ctypes.c_void_p(stream))

    def launch(self, handle: int, device: tvm.runtime.Device) -> None:
        """Runs a graph on the stream that this thread's kernels run on."""
        self._call("cudaSetDevice", device.index)
        self._call("cudaGraphLaunch", ctypes.c_void_p(handle), ctypes.c_void_p(tvm_ffi.get_raw_stream(device)))

    def destroy(self, handle: int) -> None:
        """Gives up a graph, when it does not run any more."""
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(handle))


@cache
def cuda() -> Cuda:
    """CUDA's runtime."""
    return Cuda()
