"""Pooling, and the changes of resolution that have no weights."""

from tvm import relax
from tvm.relax.frontend import nn

from tir_kernels.spec.pool import MODES, SEGMENT_MODES

from .. import op
from ..op.index import check_ceil_mode, triple
from ..op.numbers import MOST_SIZE, check_flag
from ..op.register import check_choice
from .carrier import Sites, SymbolicSparseTensor, check_sparse, emit
from .conv import linked


class Downsample(nn.Module):
    """Voxels of `factor` per axis become one: floor(coordinate / factor), sites ascending; features by `mode`.

    mode "mean", "sum", "max" or "first". `count_bias` is added to the number of rows that a mean divides by: SAM-3D-Objects and
    TRELLIS average into a zero buffer that is itself counted, which is 1.
    """

    def __init__(self, factor=2, mode: str = "mean", count_bias: int = 0):
        self.factor = triple("nn.Downsample", "factor", factor, 1)
        check_choice("nn.Downsample", "mode", mode, SEGMENT_MODES)
        self.mode = mode
        self.count_bias = count_bias

    def forward(self, x: SymbolicSparseTensor) -> SymbolicSparseTensor:
        """x [N, C] -> [M, C] on the coarser sites, M known at run time; dtype of x."""
        check_sparse("Downsample", x)
        sites, inverse = x.sites.downsampled(self.factor)
        call = op.segment_pool(x.feats._expr, inverse._expr, sites.coords._expr, mode=self.mode, count_bias=self.count_bias)
        return x.moved(emit(call, "pooled"), sites)


class Upsample(nn.Module):
    """Nearest upsampling: back to the sites, and the order of rows, that downsampling came from. Levels may be nested."""

    def forward(self, x: SymbolicSparseTensor) -> SymbolicSparseTensor:
        """x [M, C] -> [N, C], dtype of x. ValueError if the sites of x do not come from downsampling."""
        check_sparse("Upsample", x)
        if x.sites.finer is None:
            raise ValueError("Upsample: x: expected features on sites that downsampling made, given others")
        sites, inverse = x.sites.finer
        return x.moved(emit(op.gather_rows(x.feats._expr, inverse._expr), "upsampled"), sites)


class Subdivide(nn.Module):
    """Every voxel becomes factor^3 children at coordinate * factor + offset, z fastest; features are repeated."""

    def __init__(self, factor=2):
        self.factor = triple("nn.Subdivide", "factor", factor, 1)

    def forward(self, x: SymbolicSparseTensor) -> SymbolicSparseTensor:
        """x [N, C] -> [N * children, C], the children of a voxel together; dtype of x."""
        check_sparse("Subdivide", x)
        sites, parent = x.sites.subdivided(self.factor)
        return x.moved(emit(op.gather_rows(x.feats._expr, parent._expr), "subdivided"), sites)


class _SparsePool(nn.Module):
    """Pooling over the window of a strided convolution; `shape` as that of `SparseConv3d`: None takes negative coordinates.

    `ceil_mode`: windows that begin within the grid and end behind it count too, as in PyTorch.
    """

    mode = ""

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        indice_key: str | None = None,
        *,
        shape="infer",
        method: str = "auto",
        ceil_mode: bool = False,
    ):
        name = f"nn.{type(self).__name__}"
        self.kernel_size = triple(name, "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else triple(name, "stride", stride, 1)
        self.padding = triple(name, "padding", padding, 0)
        self.dilation = triple(name, "dilation", dilation, 1)
        self.indice_key = indice_key
        self.shape = shape
        self.method = method
        self.ceil_mode = check_ceil_mode(name, ceil_mode)
        self.options: dict = {}

    def forward(self, x: SymbolicSparseTensor, sites: Sites | None = None) -> SymbolicSparseTensor:
        """x [N, C] -> [M, C] on the output sites, M known at run time; dtype of x.

        `sites`: where to go instead of the sites that the layer would find, see `op.kernel_map`; one that meets none gets 0.
        """
        check_sparse(type(self).__name__, x)
        geometry = self.kernel_size, self.stride, self.padding, self.dilation
        if sites is not None:
            kernel_map = x.sites.map_to(sites, *geometry, method=self.method)
        else:
            sites, kernel_map = x.sites.strided(*geometry, self.shape, method=self.method, ceil_mode=self.ceil_mode)
        call = op.pool(x.feats._expr, kernel_map.expr, sites.coords._expr, mode=self.mode, **self.options)
        return linked(x, emit(call, "pooled"), sites, kernel_map, self.indice_key)


class SparseMaxPool3d(_SparsePool):
    """Maximum over a window; arguments as those of `SparseConv3d`, stride defaults to the kernel size.

    `max_from_zero`: start from 0, as spconv does on a CPU, so that no result is negative.
    """

    mode = "max"

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        indice_key: str | None = None,
        *,
        max_from_zero: bool = False,
        **options,
    ):
        super().__init__(kernel_size, stride, padding, dilation, indice_key, **options)
        self.options = {"max_from_zero": check_flag("nn.SparseMaxPool3d", "max_from_zero", max_from_zero)}


class SparseAvgPool3d(_SparsePool):
    """Mean over the active voxels of a window; arguments as those of `SparseConv3d`, stride defaults to the kernel size.

    `count_bias` is added to the number of voxels that the mean divides by.
    """

    mode = "mean"

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        indice_key: str | None = None,
        *,
        count_bias: int = 0,
        **options,
    ):
        super().__init__(kernel_size, stride, padding, dilation, indice_key, **options)
        self.options = {"count_bias": count_bias}


class SparseSumPool3d(_SparsePool):
    """Sum over a window; arguments as those of `SparseConv3d`, stride defaults to the kernel size."""

    mode = "sum"


class BatchPool(nn.Module):
    """One row for each batch element: the "mean", "sum" or "max" over its voxels, 0 where it has none."""

    def __init__(self, mode: str = "mean"):
        check_choice("nn.BatchPool", "mode", mode, MODES)
        self.mode = mode

    def forward(self, x: SymbolicSparseTensor) -> nn.Tensor:
        """x [N, C] -> [B, C], dtype of x."""
        check_sparse("BatchPool", x)
        batch = emit(relax.op.zeros((x.sites.batch, 0), "int32"))  # only its rows are asked for
        call = op.segment_pool(x.feats._expr, x.sites.batch_index()._expr, batch._expr, mode=self.mode)
        return emit(call, "pooled")


class SparseGlobalMaxPool(BatchPool):
    """The maximum over the voxels of each batch element: x [N, C] -> [B, C]; 0 for an element without voxels."""

    def __init__(self):
        super().__init__("max")


class SparseGlobalAvgPool(BatchPool):
    """The mean over the voxels of each batch element: x [N, C] -> [B, C]; 0 for an element without voxels."""

    def __init__(self):
        super().__init__("mean")


class SparseGlobalSumPool(BatchPool):
    """The sum over the voxels of each batch element: x [N, C] -> [B, C]; 0 for an element without voxels."""

    def __init__(self):
        super().__init__("sum")


class ToDense(nn.Module):
    """Features at their places in a grid of zeros.

    shape: extent of the grid along x, y, z, an int or three; x lies on sites of a known number of batch elements.
    """

    def __init__(self, shape, channels_first: bool = True):
        self.shape = triple("nn.ToDense", "shape", shape, 1, MOST_SIZE)
        self.channels_first = check_flag("nn.ToDense", "channels_first", channels_first)

    def forward(self, x: SymbolicSparseTensor) -> nn.Tensor:
        """x [N, C] -> [B, C, *shape], or [B, *shape, C] if not `channels_first`; dtype of x."""
        check_sparse("ToDense", x)
        call = op.to_dense(x.feats._expr, x.coords._expr, x.sites.batch, self.shape, channels_last=not self.channels_first)
        return emit(call, "dense")
