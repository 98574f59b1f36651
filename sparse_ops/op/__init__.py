"""Graph face: `sparse_ops.op.<name>(...)` makes a Relax call, with type inference and legalization of our own."""

from .kernel_map import inverse_map, strided_map, submanifold_map
from .linear import linear
from .lookup import lookup
from .sparse_conv import sparse_conv
from .subdivide import subdivide
from .unique import downsample, unique

__all__ = [
    "downsample",
    "inverse_map",
    "linear",
    "lookup",
    "sparse_conv",
    "strided_map",
    "subdivide",
    "submanifold_map",
    "unique",
]
