"""Arrays of three kinds, numpy, torch and TVM, crossing into compiled functions and back without copies, by DLPack.

`Portable`: what holds TVM tensors, which can be neither copied nor pickled, and can be both.
"""

import sys
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi

from ..devices import HOST

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TORCH = ("torch", "torch_cuda")  # kinds of torch's tensors
TRACED = ("FakeTensor", "FunctionalTensor")  # classes of torch's tensors that have a size and no memory
_names: dict = {}  # of dtypes of all kinds


class Checked(NamedTuple):
    """A tensor that `as_tensor` made before, with its dtype: it is not looked at again."""

    tensor: tvm.runtime.Tensor
    dtype: str


def kind_of(array) -> str:
    """One of "numpy", "tvm", "torch", "torch_cuda" of what lies on a device, and, for anything else, "other"."""
    if isinstance(array, np.ndarray):
        return "numpy"
    if isinstance(array, tvm.runtime.Tensor):
        return "tvm"
    torch = sys.modules.get("torch")  # a torch tensor can only exist where torch was imported
    if torch is None or not isinstance(array, torch.Tensor):
        return "other"  # which `as_tensor` refuses
    return "torch_cuda" if array.is_cuda else "torch"


def device_of(array) -> tvm.runtime.Device:
    """Where an array that `as_tensor` takes lies."""
    kind = kind_of(array)
    return array.device if kind == "tvm" else tvm.cuda(array.device.index) if kind == "torch_cuda" else HOST


def describe(array) -> str:
    """Kind, dtype and shape, for messages."""
    if not hasattr(array, "shape"):
        return f"{type(array).__name__} {array!r}"[:80]
    return f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}"


def dtype_of(array) -> str:
    """The name of an array's dtype, as TVM has it."""
    dtype = array.dtype
    if dtype not in _names:  # numpy takes microseconds to put a name together, and each argument asks twice
        _names[dtype] = str(dtype).removeprefix("torch.")
    return _names[dtype]


def cast_hint(array, dtypes: tuple[str, ...], name: str = "") -> str:
    """How to bring an array to the first of the dtypes, for messages; nothing where it has one of them."""
    given, wanted = dtype_of(array), dtypes[0]
    if given in dtypes or not any(given.startswith(kind) for kind in ("float", "bfloat", "int", "uint")):
        return ""
    kind = kind_of(array)
    if kind in TORCH:
        return f": pass {name or 'tensor'}{'.float()' if wanted == 'float32' else f'.to(torch.{wanted})'}"
    return f": pass {name or 'array'}{f'.astype({wanted!r})' if kind == 'numpy' else f' as {wanted}'}"


def as_tensor(array, argument: str, dtypes: tuple[str, ...], shape: tuple) -> tvm.runtime.Tensor:
    """A TVM tensor over the memory of `array`.

    `dtypes`: those allowed; `shape`: an int for a dimension that must be that long, None or a name for any length. Only a
    read-only numpy array is copied, as DLPack cannot say that it must not be written. Raises ValueError naming the argument,
    what was given and what was expected: another kind, dtype, rank or length, memory that is not contiguous or neither on a
    CPU nor on a CUDA device, a torch tensor that records gradients.
    """
    kind = kind_of(array)

    def refuse(reason: str = ""):
        wanted = f"{' or '.join(dtypes)} [{', '.join('any' if n is None else str(n) for n in shape)}]"
        raise ValueError(f"{argument}: expected {wanted}, given {describe(array)}{reason}")

    if kind == "other":
        refuse(": neither a numpy array nor a torch or TVM tensor")
    given = tuple(array.shape)
    if dtype_of(array) not in dtypes or len(given) != len(shape):
        refuse(cast_hint(array, dtypes, argument.rpartition(".")[2]))
    for want, have in zip(shape, given, strict=True):
        if isinstance(want, int) and have != want:
            refuse()
    if 0 in given:  # numpy gives such arrays strides that TVM does not take for compact
        return tvm.runtime.empty(given, dtype_of(array), device_of(array))
    if kind == "numpy":
        if not array.flags.c_contiguous:
            refuse(", not contiguous: pass np.ascontiguousarray(...)")
        if not array.flags.writeable:
            array = array.copy()
        if array.dtype == BFLOAT16:  # numpy's DLPack does not know bfloat16
            return tvm_ffi.from_dlpack(array.view(np.uint16))._create_view(array.shape, "bfloat16")
        return tvm_ffi.from_dlpack(array)
    if kind in TORCH:
        if type(array).__name__ in TRACED:
            refuse(" without numbers, as torch.export traces: call torch.ops.sparse_ops, see sparse_ops.torch.ops")
        if array.device.type not in ("cpu", "cuda"):
            refuse(f" on {array.device}, neither on a CPU nor on a CUDA device")
        if not array.is_contiguous():
            refuse(", not contiguous: pass tensor.contiguous()")
        if array.requires_grad:
            if sys.modules["torch"].is_grad_enabled():
                refuse(" that records gradients: these ops have none, call them under torch.no_grad()")
            array = array.detach()
        return tvm_ffi.from_dlpack(array)
    if not array.is_contiguous():
        refuse(", not contiguous")
    if array.device != HOST:
        return array
    # Kernels do not look whether a tensor begins inside of another one's memory; the view that numpy takes begins at its own.
    return as_tensor(as_kind(array, "numpy"), argument, dtypes, shape)


def as_kind(tensor: tvm.runtime.Tensor, kind: str):
    """`tensor` as an array of the given kind: over the same memory, or, where that is not where the kind lies, a copy."""
    if kind == "tvm":
        return tensor
    if kind == "torch_cuda":
        import torch

        return torch.from_dlpack(tensor) if tensor.device != HOST else torch.from_dlpack(tensor).cuda()
    if tensor.device != HOST:
        tensor = tensor.copyto(HOST)
    if kind == "torch":
        import torch

        return torch.from_dlpack(tensor)
    if tensor.dtype == "bfloat16":
        return np.from_dlpack(tensor._create_view(tensor.shape, "uint16")).view(BFLOAT16)
    return np.from_dlpack(tensor)


def reshape(array, shape):
    """Another shape of a contiguous array of any kind, over the same memory."""
    return array._create_view(tuple(shape), array.dtype) if isinstance(array, tvm.runtime.Tensor) else array.reshape(shape)


class Travelling(NamedTuple):
    """A TVM tensor as the numpy array in which it travels, and the number of the CUDA device on which it lay, if it did."""

    array: np.ndarray
    number: int | None = None

    @classmethod
    def of(cls, value):
        """What travels in place of a tensor, or of a tuple of such; anything else as it is."""
        if isinstance(value, tvm.runtime.Tensor):
            return cls(as_kind(value, "numpy"), None if value.device == HOST else value.device.index)
        return tuple(map(cls.of, value)) if type(value) is tuple else value

    @classmethod
    def back(cls, value):
        """What `of` was given, on its device; in memory of the CPU's where this machine has no such device."""
        if type(value) is not cls:
            return tuple(map(cls.back, value)) if type(value) is tuple else value
        tensor = as_tensor(value.array, "array", (dtype_of(value.array),), value.array.shape)
        if value.number is None or not (device := tvm.cuda(value.number)).exist:
            return tensor
        return tensor.copyto(device)


class Portable:
    """Base of what holds TVM tensors and may be copied and pickled: they travel as numpy arrays and come back as they were.

    What stands under the names in `_rebuilt` stays behind, and comes back as these make it.
    """

    _rebuilt: ClassVar[dict[str, Callable[[], object]]] = {}

    def __getstate__(self) -> dict:
        return {name: Travelling.of(value) for name, value in vars(self).items() if name not in self._rebuilt}

    def __setstate__(self, state: dict) -> None:
        vars(self).update({name: Travelling.back(value) for name, value in state.items()})
        vars(self).update({name: make() for name, make in self._rebuilt.items()})
