"""Sparse convolutions in three dimensions: weights [Cout, kx, ky, kz, Cin / groups], as in spconv and its checkpoints."""

from math import prod

from tvm import relax
from tvm.relax.frontend import nn

from .. import op
from ..op.index import output_padding_of, triple
from ..op.numbers import check_groups
from .carrier import Link, Sites, SymbolicKernelMap, SymbolicSparseTensor, check_sparse, emit
from .rows import Rowwise, check_count, expr_of


class _SparseConv(nn.Module):
    """Parameters of any sparse convolution, and its two ways to compute.

    Parameters: weight [Cout, kx, ky, kz, Cin / groups] of `dtype` (float32, bfloat16 or float16), bias float32 [Cout].
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, bias: bool, dtype: str, groups: int):
        self._owner = type(self).__name__
        in_channels, out_channels = check_count(self._owner, in_channels=in_channels, out_channels=out_channels)
        groups = check_groups(f"nn.{self._owner}: groups", groups, in_channels, out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.kernel_size = triple(f"nn.{self._owner}", "kernel_size", kernel_size, 1)
        self.weight = nn.Parameter((out_channels, *self.kernel_size, in_channels // groups), dtype)
        self.bias = nn.Parameter((out_channels,), "float32") if bias else None

    def _through(self, kernel_map: SymbolicKernelMap, sites: Sites, x: SymbolicSparseTensor, residual, activation) -> nn.Tensor:
        """The convolution from `x` to `sites`."""
        bias = None if self.bias is None else self.bias._expr
        call = op.sparse_conv(
            x.feats._expr,
            self.weight._expr,
            kernel_map.expr,
            sites.coords._expr,
            bias,
            expr_of(residual, "residual"),
            activation,
            self.groups,
        )
        return emit(call, "sparse_conv")

    def _pointwise(self, x: SymbolicSparseTensor, residual, activation) -> SymbolicSparseTensor:
        """A convolution with kernel 1 and stride 1, as spconv computes it: `y = x @ M + bias` on the same sites, where M is
        the memory of the weight [Cout, 1, 1, 1, Cin] read as a row-major [Cin, Cout] matrix. That is not the transpose,
        and it is what networks were trained with. It holds for every class here; no other place knows of it. spconv has no
        groups: with them it is the grouped convolution that it is for any other kernel.
        """
        if self.groups > 1:
            kernel_map = x.sites.submanifold_map((1, 1, 1), (1, 1, 1), "auto")
            return x.with_feats(self._through(kernel_map, x.sites, x, residual, activation))
        matrix = emit(relax.op.reshape(self.weight._expr, (self.in_channels, self.out_channels)))
        weight = emit(relax.op.permute_dims(matrix._expr))  # [Cout, Cin], as `linear` takes it
        bias = None if self.bias is None else self.bias._expr
        call = op.linear(x.feats._expr, weight._expr, bias, expr_of(residual, "residual"), activation)
        return x.with_feats(emit(call, "linear"))

    def _onto(
        self, x: SymbolicSparseTensor, target: Sites, geometry: dict, residual, activation, method: str, key: str | None = None
    ) -> SymbolicSparseTensor:
        """The convolution from `x` to sites that the caller chose."""
        kernel_map = x.sites.map_to(target, **geometry, method=method)
        if prod(geometry["kernel_size"]) == 1 and prod(geometry.get("stride", (1,))) == 1:
            rows = emit(op.pool(x.feats._expr, kernel_map.expr, target.coords._expr, mode="sum"), "rows")  # of one, or of none
            out = self._pointwise(x.moved(rows, target), residual, activation).feats
        else:
            out = self._through(kernel_map, target, x, residual, activation)
        return linked(x, out, target, kernel_map, key)

    def _check(self, x: SymbolicSparseTensor) -> None:
        check_sparse(self._owner, x)
        if x.channels != self.in_channels:
            raise ValueError(f"{self._owner}: x: expected {self.in_channels} channels, given {x.channels}")


class SubMConv3d(_SparseConv):
    """Submanifold convolution: output sites are the input sites, stride 1, padding (kernel_size // 2) * dilation.

    kernel_size (odd) and dilation: ints or three along x, y, z. `method`: how the map is built, see `op.submanifold_map`;
    all give the same bits. Layers of one kernel size and dilation on the same sites share one map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size=3,
        *,
        dilation=1,
        bias: bool = True,
        dtype: str = "float32",
        method: str = "auto",
        groups: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, bias, dtype, groups)
        if any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f"nn.SubMConv3d: kernel_size: expected odd sizes, given {kernel_size!r}")
        self.dilation = triple("nn.SubMConv3d", "dilation", dilation, 1)
        self.method = method

    def forward(
        self,
        x: SymbolicSparseTensor,
        residual: Rowwise | None = None,
        activation: str = "none",
        sites: Sites | None = None,
    ) -> SymbolicSparseTensor:
        """x [N, Cin]; residual [N, Cout], added before the activation -> [N, Cout] on the same sites, dtype of x.

        `sites`: M other sites to go to, with a residual [M, Cout] -> [M, Cout]; see `op.kernel_map`.
        """
        self._check(x)
        if sites is not None:
            padding = tuple(k // 2 * d for k, d in zip(self.kernel_size, self.dilation, strict=True))
            geometry = {"kernel_size": self.kernel_size, "padding": padding, "dilation": self.dilation}
            return self._onto(x, sites, geometry, residual, activation, self.method)
        if prod(self.kernel_size) == 1:
            return self._pointwise(x, residual, activation)
        kernel_map = x.sites.submanifold_map(self.kernel_size, self.dilation, self.method)
        return x.with_feats(self._through(kernel_map, x.sites, x, residual, activation))

    def of_upsampled(
        self,
        x: SymbolicSparseTensor,
        finer: tuple[Sites, nn.Tensor],
        residual: Rowwise | None = None,
        activation: str = "none",
    ) -> SymbolicSparseTensor:
        """The layer after nearest upsampling, multiplied before rows are repeated: less work, see `op.upsampled_conv`.

        x [M, Cin]; finer: the sites to go to and the row of x that each repeats, int32 [N], as `x.sites.finer` where
        downsampling came from them (None elsewhere, a ValueError), or as `x.sites.subdivided()`; residual [N, Cout] ->
        [N, Cout] on the finer sites, dtype of x.
        """
        self._check(x)
        if finer is None:
            raise ValueError(
                "SubMConv3d: finer: expected sites and parents, given None: x is on no sites that downsampling made"
            )
        sites, parent = finer
        if prod(self.kernel_size) == 1 or self.groups > 1:  # `upsampled_conv` multiplies by whole matrices
            upsampled = emit(op.gather_rows(x.feats._expr, parent._expr), "upsampled")
            return self.forward(x.moved(upsampled, sites), residual, activation)
        call = op.upsampled_conv(
            x.feats._expr,
            self.weight._expr,
            sites.submanifold_map(self.kernel_size, self.dilation, self.method).expr,
            parent._expr,
            None if self.bias is None else self.bias._expr,
            expr_of(residual, "residual"),
            activation,
        )
        return x.moved(emit(call, "upsampled_conv"), sites)


class SparseConv3d(_SparseConv):
    """Strided convolution: a site is active where any tap meets an active one. The number of rows is known at run time.

    kernel_size, stride, padding, dilation: ints or three along x, y, z. `indice_key`: the name under which
    `SparseInverseConv3d` finds this layer to undo it. `shape`: extent of the input grid, ints or symbolic dimensions, "infer"
    for one more than the largest coordinate, or None for a lattice without bounds, on which coordinates may be negative: see
    `op.strided_map`, which also tells the order of the rows.
    """

    transposed = False
    output_padding: tuple[int, int, int] = (0, 0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        *,
        bias: bool = True,
        indice_key: str | None = None,
        shape="infer",
        dtype: str = "float32",
        method: str = "auto",
        groups: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, bias, dtype, groups)
        name = f"nn.{self._owner}"
        self.stride = triple(name, "stride", stride, 1)
        self.padding = triple(name, "padding", padding, 0)
        self.dilation = triple(name, "dilation", dilation, 1)
        self.indice_key = indice_key
        self.shape = shape
        self.method = method
        self.pointwise = prod(self.kernel_size) == 1 and prod(self.stride) == 1
        if self.pointwise and any(self.padding):
            raise ValueError(f"{name}: padding: expected 0 with kernel and stride 1, given {padding!r}")

    def forward(self, x: SymbolicSparseTensor, activation: str = "none", sites: Sites | None = None) -> SymbolicSparseTensor:
        """x [N, Cin] -> [M, Cout] on the output sites, dtype of x.

        `sites`: where to go instead of the sites that the layer would find, see `op.kernel_map`.
        """
        self._check(x)
        geometry = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "transposed": self.transposed,
        }
        if sites is not None:
            return self._onto(x, sites, geometry, None, activation, self.method, self.indice_key)
        if self.pointwise:
            return self._pointwise(x, None, activation)
        sites, kernel_map = x.sites.strided(
            **geometry, shape=self.shape, method=self.method, output_padding=self.output_padding
        )
        return linked(x, self._through(kernel_map, sites, x, None, activation), sites, kernel_map, self.indice_key)


class SparseConvTranspose3d(SparseConv3d):
    """Transposed convolution, which makes new sites: as `SparseConv3d`, with coordinate_out = stride * coordinate_in
    + dilation * k - padding.

    `output_padding`: layers that the output grid has more at its end, below the larger of stride and dilation.
    """

    transposed = True

    def __init__(self, *args, output_padding=0, **kwargs):
        super().__init__(*args, **kwargs)
        name = f"nn.{self._owner}"
        self.output_padding = output_padding_of(name, output_padding, self.stride, self.dilation)
        if self.pointwise and any(self.output_padding):
            raise ValueError(f"{name}: output_padding: expected 0 with kernel and stride 1, given {output_padding!r}")


class SparseInverseConv3d(_SparseConv):
    """Undoes the layer of `indice_key`: the same triples (input, output, tap) with input and output exchanged.

    Restores the sites, and the order of the rows, that the layer came from; a row that fed nothing gets the bias. Kernel
    size as that layer's. With kernel 1 it stays on its sites, as in spconv.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        indice_key: str,
        bias: bool = True,
        *,
        dtype: str = "float32",
        groups: int = 1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, bias, dtype, groups)
        self.indice_key = indice_key

    def forward(
        self, x: SymbolicSparseTensor, residual: Rowwise | None = None, activation: str = "none"
    ) -> SymbolicSparseTensor:
        """x [M, Cin] on the sites that the layer led to; residual [N, Cout] -> [N, Cout] on those it came from.

        ValueError for a key that no layer before has, or whose sites are not those of x.
        """
        self._check(x)
        if prod(self.kernel_size) == 1:
            return self._pointwise(x, residual, activation)
        link = x.links.get(self.indice_key)
        if link is None:
            known = ", ".join(map(repr, x.links)) or "none"
            raise ValueError(
                f"SparseInverseConv3d: indice_key: expected that of an earlier layer ({known}), given {self.indice_key!r}"
            )
        if link.target is not x.sites:
            raise ValueError(
                f"SparseInverseConv3d: x: expected features on the sites that layer {self.indice_key!r} led to, given others"
            )
        kernel_map = link.source.inverse_map(link.kernel_map)
        return x.moved(self._through(kernel_map, link.source, x, residual, activation), link.source)


def linked(
    x: SymbolicSparseTensor, feats: nn.Tensor, sites: Sites, kernel_map: SymbolicKernelMap, key: str | None
) -> SymbolicSparseTensor:
    """What a layer that changed the sites of `x` returns: undoable if it has a key. ValueError for a key already taken."""
    out = x.moved(feats, sites)
    if key is None:
        return out
    earlier = x.links.get(key)
    if earlier is not None and not (earlier.source is x.sites and earlier.kernel_map is kernel_map):
        raise ValueError(f"indice_key: expected a key of its own for every map, given {key!r} again")
    return SymbolicSparseTensor(out.feats, out.sites, x.links | {key: Link(x.sites, sites, kernel_map)})
