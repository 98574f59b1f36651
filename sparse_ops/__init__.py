"""Sparse 3D deep learning in Apache TVM: Relax ops on sparse tensors, and eager calls of the same ops.

- `sparse_ops.op`: constructors of Relax ops, for graphs; `sparse_ops.nn`: modules in the style of `relax.frontend.nn`;
  `sparse_ops.build.build` compiles a module for a CPU.
- `SparseTensor` and the layers below, with spconv's names and argument order: eager calls on numpy, torch or TVM arrays;
  `sparse_ops.functional` has the functions under them.
"""

from tir_kernels.cpu.threads import set_threads, threads  # the package also sets up the thread pool before its first use

from .eager import functional
from .eager import layers as modules
from .eager.call import KernelMap, Weights
from .eager.layers import *  # noqa: F403
from .eager.tensor import SparseTensor, sparse_add
from .eager.voxels import intersection, prune, sparse_cat

__all__ = [
    "KernelMap",
    "SparseTensor",
    "Weights",
    "functional",
    "intersection",
    "prune",
    "set_threads",
    "sparse_add",
    "sparse_cat",
    "threads",
    *modules.__all__,
]
