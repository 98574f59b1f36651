"""Kernel parameters that live where the caller's data lives."""

import tvm
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

STACK_BYTES = 1024  # of a kernel's buffer, from which on TVM takes it from a workspace instead of the stack


def match_buffer(handle, shape, dtype: str):
    """`T.match_buffer` for data aligned to its elements only.

    TVM assumes 64 bytes and loads vectors accordingly, without a check: a numpy array, which is aligned to 16 bytes, or a
    slice of a tensor would end the process. On aligned data the unaligned loads cost the same.
    """
    return T.match_buffer(handle, shape, dtype, align=tvm.DataType(dtype).bits // 8)


def named(name: str, buffer):
    """`buffer` under a name, as an assignment in a kernel's script gives it: for buffers that a Python function matches."""
    IRBuilder.name(name, buffer)
    return buffer
