"""Sparse 3D deep learning in Apache TVM: Relax ops on sparse tensors, and eager calls of the same ops.

- `sparse_ops.op`: constructors of Relax ops, for graphs; `sparse_ops.nn`: modules in the style of `relax.frontend.nn`;
  `sparse_ops.build.build` compiles a module for a CPU.
- `SparseTensor` and the layers below, with spconv's names and argument order: eager calls on numpy, torch or TVM arrays;
  `sparse_ops.functional` has the functions under them, `sparse_ops.weights` the layouts of other libraries.
"""

from tir_kernels.cpu.threads import set_threads, threads  # the package also sets up the thread pool before its first use

from . import weights
from .eager import containers, functional, norm
from .eager import layers as modules
from .eager.call import KernelMap, Weights
from .eager.containers import *  # noqa: F403
from .eager.layers import *  # noqa: F403
from .eager.norm import *  # noqa: F403
from .eager.points import devoxelize, voxelize
from .eager.tensor import SparseTensor, cat, sparse_add, sparse_cat
from .eager.voxels import intersection, prune

__all__ = [
    "KernelMap",
    "SparseTensor",
    "Weights",
    "cat",
    "devoxelize",
    "functional",
    "intersection",
    "prune",
    "set_threads",
    "sparse_add",
    "sparse_cat",
    "threads",
    "voxelize",
    "weights",
    *containers.__all__,
    *modules.__all__,
    *norm.__all__,
]
