"""The three ways to compute the sparse convolutions of a network, with the same parameters and the same result."""

from collections.abc import Callable
from functools import partial

from tvm import relax

from sam3d_tvm.checks import check_choice
from sparse_ops import op
from sparse_ops.nn import Module, Parameter, SubMConv3d, SymbolicSparseTensor, Tensor
from sparse_ops.nn.carrier import emit
from sparse_ops.op.conv import conv3d

SPARSE_BACKENDS = ("native", "dense", "torch")
Convolution = Callable[[int, int, int], Module]  # of input channels, output channels and kernel size


def convolution(sparse_backend: str, extent: int) -> Convolution:
    """What makes the submanifold convolutions on a grid of `extent` cells along each axis.

    - "native": our kernels;
    - "dense": features are put on the whole grid, which takes a dense convolution;
    - "torch": torch computes them within the compiled module, see `sparse_ops.torch`.

    Raises ValueError for another name, and ImportError where "torch" is asked for and not installed.
    """
    check_choice("sparse_backend", sparse_backend, SPARSE_BACKENDS)
    if sparse_backend == "dense":
        return partial(DenseConv3d, extent=extent)
    if sparse_backend == "torch":
        from sparse_ops.torch import callback as torch  # only who asks for it needs torch

        return torch.SubMConv3d
    return SubMConv3d


class DenseConv3d(Module):
    """A submanifold convolution by way of the dense grid, which has `extent` cells along each axis.

    Parameters as those of `SubMConv3d`. Its sites must be those of one batch element.
    """

    def __init__(self, channels: int, out_channels: int, kernel_size: int, extent: int):
        self.weight = Parameter((out_channels, *(kernel_size,) * 3, channels), "float32")
        self.bias = Parameter((out_channels,), "float32")
        self.padding = kernel_size // 2
        self.shape = (extent,) * 3

    def forward(self, x: SymbolicSparseTensor, residual: Tensor | None = None) -> SymbolicSparseTensor:
        """x [N, Cin], residual [N, Cout] -> [N, Cout]."""
        grid = emit(op.to_dense(x.feats._expr, x.coords._expr, x.sites.batch, self.shape))
        weight = emit(relax.op.permute_dims(self.weight._expr, [0, 4, 1, 2, 3]))
        grid = emit(conv3d(grid._expr, weight._expr, self.bias._expr, padding=self.padding))
        rows = emit(op.from_dense(grid._expr, x.coords._expr))
        return x.with_feats(rows if residual is None else emit(relax.op.add(rows._expr, residual._expr)))
