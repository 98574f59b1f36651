"""Sizes that the data decide, looked at before anything is made of them: negative ones, and more than memory holds.

Both functions are called by compiled Relax code. They are registered when `tir_kernels` (or anything above it) is imported, as
the refusals of `guards` are.
"""

from collections.abc import Sequence
from math import prod

import tvm
import tvm_ffi

from .memory import ASK_BYTES, check_memory

CHECK_SIZES, CHECK_SHAPE = "tir_kernels.check_sizes", "tir_kernels.check_shape"


def check_sizes(what: str, least: int, dtype: str, sizes: Sequence[int]) -> tvm_ffi.Shape:
    """The sizes. ValueError, which `what` begins, for one below `least`, or, with a `dtype`, of a tensor that does not fit."""
    if min(sizes, default=least) < least:
        raise ValueError(f"{what}: expected at least {least}, given {list(sizes)}")
    if dtype and prod(sizes) * tvm.DataType(dtype).itemsize > ASK_BYTES:
        check_memory(what, f"{dtype} {len(sizes)}", *sizes)
    return tvm_ffi.Shape(sizes)


def check_shape(what: str, given: Sequence[int], expected: Sequence[int]) -> tvm_ffi.Shape:
    """The shape that is expected. ValueError, which `what` begins, if another is given."""
    if tuple(given) != tuple(expected):
        raise ValueError(f"{what}: expected the shape {list(expected)}, given {list(given)}")
    return tvm_ffi.Shape(expected)


tvm.register_global_func(CHECK_SIZES, check_sizes)
tvm.register_global_func(CHECK_SHAPE, check_shape)
