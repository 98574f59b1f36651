"""Sparse 3D deep learning in Apache TVM: Relax ops on sparse tensors, and eager calls of the same ops.

- `sparse_ops.op`: constructors of Relax ops, for graphs; `sparse_ops.nn`: modules in the style of `relax.frontend.nn`;
  `sparse_ops.build.build` compiles a module for a CPU.
- `SparseTensor` and the layers below, with spconv's names and argument order: eager calls on numpy, torch or TVM arrays;
  `sparse_ops.functional` has the functions under them.
"""

from tir_kernels.cpu.threads import set_threads, threads  # the package also sets up the thread pool before its first use

from .eager import containers, functional
from .eager import layers as modules
from .eager.call import KernelMap, Weights
from .eager.containers import *  # noqa: F403
from .eager.layers import *  # noqa: F403
from .eager.tensor import SparseTensor, cat, sparse_add, sparse_cat
from .eager.voxels import intersection, prune

__all__ = [
    "KernelMap",
    "SparseTensor",
    "Weights",
    "cat",
    "functional",
    "intersection",
    "prune",
    "set_threads",
    "sparse_add",
    "sparse_cat",
    "threads",
    *containers.__all__,
    *modules.__all__,
]
