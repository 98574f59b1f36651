"""Whether an array still holds what it held: whoever wrote into it, through whichever of its views and names."""

from collections.abc import Callable
from functools import cache, lru_cache

import tvm
import tvm_ffi

from tir_kernels.dispatch import host_target
from tir_kernels.spec.checksum import Checksum

from ..devices import HOST
from .cache import kernel

WORDS = {"float32": "uint32", "int32": "uint32", "float16": "uint16", "bfloat16": "uint16"}  # as wide as an element


@cache
def _function(words: str) -> Callable[[tvm.runtime.Tensor], int]:
    with host_target():  # whatever the target in scope
        return kernel(Checksum(words))


@lru_cache(1024)
def _flat(size: int) -> tvm_ffi.Shape:  # it takes longer to make one than to sum up a small array
    return tvm_ffi.Shape((size,))


def checksum(tensor: tvm.runtime.Tensor, dtype: str) -> int:
    """64 bits over the elements of a tensor of any shape. Its dtype, one of `WORDS`, is given, as to ask for it takes time."""
    words = WORDS[dtype]
    if tensor.device != HOST:  # the kernel is this CPU's, and cannot read a device's memory
        tensor = tensor.copyto(HOST)
    return _function(words)(tensor._create_view(_flat(tensor.numel()), words))
