"""The question whether tensors fit into memory, as the host's part of a kernel asks it, on any target."""

from collections.abc import Sequence

import tvm
from tvm.script import tirx as T

from .buffers import match_buffer, named
from .memory import ASK_BYTES, CHECK_MEMORY
from .spec.memory import GrantMemory


def check_memory(what: str, tensors: Sequence[tuple[str, Sequence]], asks: str = CHECK_MEMORY) -> None:
    """Emit: raise unless tensors of these dtypes and dimensions, int64 expressions, fit into memory together, see `memory`.

    `asks`: the packed function that knows what is left.
    """
    size = T.float64(0)  # products of int64 would wrap
    for dtype, dims in tensors:
        bytes_of_one = T.float64(tvm.DataType(dtype).itemsize)
        for dim in dims:
            bytes_of_one = bytes_of_one * T.Cast("float64", dim)
        size = size + bytes_of_one
    kinds = " ".join(f"{dtype} {len(dims)}" for dtype, dims in tensors)
    with T.If(size > T.float64(ASK_BYTES)), T.Then():
        T.evaluate(T.call_packed(asks, what, kinds, *(dim for _, dims in tensors for dim in dims)))


def match_sized(spec: GrantMemory, *handles) -> list[list]:
    """The dimensions of the arguments that are tensors, of which `handles` are the parameters."""
    shapes = []
    for place, (handle, (dtype, rank)) in enumerate(zip(handles, spec.sized, strict=False)):
        shape = [tvm.tirx.Var(f"d{place}_{axis}", "int64") for axis in range(rank)]
        named(f"x{place}", match_buffer(handle, shape, dtype))
        shapes.append(shape)
    return shapes


def asked(spec: GrantMemory, shapes: Sequence[Sequence], numbers: Sequence) -> list[tuple]:
    """dtype and dimensions, as expressions, of what will be allocated."""

    def size(dim):
        if isinstance(dim, int):
            return T.int64(dim)
        return numbers[dim.place] if dim.axis is None else shapes[dim.place][dim.axis]

    return [(dtype, [size(dim) for dim in dims]) for dtype, dims in spec.tensors]
