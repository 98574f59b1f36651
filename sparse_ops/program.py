"""A compiled module that any number of threads may call at once.

Code for a CUDA device runs there: arguments that lie elsewhere are copied to it, and results lie in its memory.

A `relax.VirtualMachine` keeps the state of a call in itself: entered by two threads it ends the process. One costs 40 us and
2 KB beside the code that all of them share, so a call takes one that is idle, or makes one. Results go back to the system when
they are dropped ("naive"): TVM's pool would keep a buffer of every size that was ever asked for. On a device, where to ask
for memory waits for all kernels, the pool is used; it gives everything back when memory runs out.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.vm_build import VMExecutable

from tir_kernels.cpu.threads import note_use

from .devices import HOST, device_for, placed
from .transform.lift_params import TRANSFORM_PARAMS

IDLE = 8  # machines that are kept, each with the last result that it returned; more calls than that at once make theirs anew

Packed = list[tvm.runtime.Tensor]  # parameters in the layout of this machine's kernels
Observer = Callable[[str, tuple], None]  # of the name of a kernel, and its arguments


class _Recording(threading.local):
    """What this thread's calls are told to, in place of an idle machine: `call(machines, name, args)`."""

    by = None


RECORDING = _Recording()


class Program(VMExecutable):
    """What `build` returns: compiled functions by name, as `tvm.compile` returns them, that threads may share.

        program = build(module)
        out = program["main"](x)

    Results lie in memory of their own and go back to the system when they are dropped. Weights are the caller's: `pack_params`
    makes packed copies of them, which do not follow what is written into the originals afterwards.
    """

    def __init__(self, code: tvm.runtime.Module | tvm.runtime.Executable, device: tvm.runtime.Device | None = None):
        """`code`: what `tvm.compile` returned for a Relax module, or what was loaded from a library made of it. `device`: where
        it runs, by default the CUDA device in use, if it is code for one."""
        super().__init__(code.mod if isinstance(code, tvm.runtime.Executable) else code)
        self._device = device
        self._machines = _Machines(tvm.runtime.Executable(self.mod).jit, lambda: self.device)

    @property
    def device(self) -> tvm.runtime.Device:
        """Where it runs. ValueError for code for a CUDA device where there is none."""
        if self._device is None:
            self._device = device_for(self.mod)
        return self._device

    def __getitem__(self, name: str) -> "Function":
        """The function of that name. Raises ValueError if there is none."""
        return self._machines[name]

    def __call__(self, *args):
        """Call the function `main`."""
        return self["main"](*args)

    def jit(self, **options) -> tvm.runtime.Module:
        """The code, for a `relax.VirtualMachine` of one's own, which is for one thread at a time."""
        note_use()
        return super().jit(**options)

    def pack_params(self, name: str, read: Callable[[int], tvm.runtime.Tensor]) -> Packed:
        """See `pack_params`."""
        return pack_params(self, name, read)

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Inside, `observer(name, arguments)` is told of every kernel and builtin function before it runs, from any thread;
        what calls compute stays the same. An error that it raises ends the call."""
        before = self._machines.observer
        self.watch(observer)
        try:
            yield
        finally:
            self.watch(before)

    def watch(self, observer: Observer | None) -> None:
        """As inside of `observed` from now on; None ends it."""
        self._machines.watch(observer)

    def __copy__(self) -> "Program":
        """Itself, as nothing in it changes."""
        return self

    def __deepcopy__(self, memo: dict) -> "Program":
        return self

    def __reduce__(self):
        raise TypeError("a Program cannot be pickled: write it by `export_library` and load it in the other process")


def tensors_of(result) -> list[tvm.runtime.Tensor]:
    """The tensors of a result, tuples taken apart."""
    return [result] if isinstance(result, tvm.runtime.Tensor) else [tensor for field in result for tensor in tensors_of(field)]


class Function:
    """A function of a program. It takes and returns TVM tensors, or tuples of them, and may be called from any thread.

    Tensors that do not lie on the program's device are copied there.
    """

    def __init__(self, machines: "_Machines", name: str):
        self.name = name
        self._machines, self._idle = machines, machines.idle

    def __call__(self, *args):
        if RECORDING.by is not None:
            return RECORDING.by.call(self._machines, self.name, args)
        idle = self._idle
        try:
            machine = idle.pop()
        except IndexError:
            machine = self._machines.another()
        if machine.device != HOST:
            args = placed(args, machine.device)
        result = machine[self.name](*args)  # a machine whose call fails is dropped
        if len(idle) < IDLE and machine.observer is self._machines.observer:
            idle.append(machine)
        return result

    def pack(self, read: Callable[[int], tvm.runtime.Tensor]) -> Packed:
        """See `pack_params`."""
        return pack_params(self._machines, self.name, read)

    def __repr__(self) -> str:
        return f"Function({self.name!r})"


class _Machine(dict):
    """Functions of one virtual machine by name, for one call at a time."""

    def __init__(self, code: tvm.runtime.Module, device: tvm.runtime.Device, observer: Observer | None):
        super().__init__()
        memory = "naive" if device == HOST else "pooled"
        self.machine, self.device, self.observer = relax.VirtualMachine(code, device, memory_cfg=memory), device, observer
        if observer is not None:
            self.machine.set_instrument(partial(_tell, observer))

    def __missing__(self, name: str) -> tvm_ffi.Function:
        function = self[name] = self.machine[name]
        return function


def _tell(observer: Observer, function: tvm_ffi.Function, name: str, before: bool, result, *arguments) -> int:
    """What the virtual machine calls before and after each call of a function; 0 goes on."""
    if before:
        observer(str(name), arguments)
    return 0


class _Machines:
    """The virtual machines of one module, those that are idle, and the functions that they all have."""

    def __init__(self, load: Callable[[], tvm.runtime.Module], device: Callable[[], tvm.runtime.Device]):
        self.load, self._device, self.idle = load, device, []
        self.functions: dict[str, Function] = {}
        self.observer: Observer | None = None

    @property
    def device(self) -> tvm.runtime.Device:
        return self._device()

    def another(self) -> _Machine:
        note_use()
        return _Machine(self.load(), self.device, self.observer)

    def watch(self, observer: Observer | None) -> None:
        """Machines that are made from now on tell `observer`; those that do not are given up."""
        self.observer = observer
        self.idle.clear()

    def __getitem__(self, name: str) -> Function:
        function = self.functions.get(name)
        if function is None:
            machine = self.another()
            try:
                machine[name]
            except AttributeError:
                raise ValueError(f"name: expected that of a function of this program, given {name!r}") from None
            self.idle.append(machine)
            function = self.functions.setdefault(name, Function(self, name))
        return function


def pack_params(
    program: Program | _Machines | relax.VirtualMachine, name: str, read: Callable[[int], tvm.runtime.Tensor]
) -> Packed:
    """The packed parameters of function `name` of a module built with `lift_params=True`, to be passed after its inputs.

    `read(i)` returns parameter i in the order of `export_tvm`. It is called once for each parameter that the function
    uses, and the result dropped after its last use: weights of any size never lie in memory twice. What is packed is a copy:
    after the original has changed, pack again.
    """
    packed = {}

    def store(index: int, value: tvm.runtime.Tensor) -> None:
        packed[index] = value.copyto(value.device)  # its memory is used again by the next ones

    pack_each(program, name, read, store)
    return [packed[i] for i in range(len(packed))]


def pack_each(
    program: Program | _Machines | relax.VirtualMachine,
    name: str,
    read: Callable[[int], tvm.runtime.Tensor],
    store: Callable[[int, tvm.runtime.Tensor], None],
) -> None:
    """As `pack_params`: calls `store(i, value)` with the packed parameters, one at a time; it copies those that it keeps."""
    device = getattr(program, "device", HOST)
    convert = tvm_ffi.convert
    program[name + TRANSFORM_PARAMS](convert(lambda index: placed(read(index), device)), convert(store))
