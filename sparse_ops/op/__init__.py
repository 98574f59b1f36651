"""Graph face: `sparse_ops.op.<name>(...)` makes a Relax call, with type inference and legalization of our own."""

from .linear import linear

__all__ = ["linear"]
