"""What modules hand to each other while a graph is built: features, the sites they lie on, and the maps between sites.

Nothing here holds data. A `Sites` stands for a coordinate set of one function under construction and remembers what was
emitted for it, so that every layer on the same sites reads the same kernel map.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import tvm
from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec

from tir_kernels.dispatch import map_layout
from tir_kernels.spec.serialize import BITS

from .. import op
from ..op.index import dimensions, triple
from ..op.numbers import check_int
from ..op.windows import LEAST_SHIFT, window_axes

_fresh = itertools.count()

Rows = int | tirx.Expr  # a dimension


def dimension(name: str) -> tirx.Var:
    """A fresh symbolic dimension."""
    return tirx.Var(f"{name}_{next(_fresh)}", "int64")


def emit(expr: relax.Expr, name: str = "lv") -> nn.Tensor:
    """Emit a call of known shape into the current function."""
    return nn.Tensor(_expr=relax.BlockBuilder.current().emit(expr, name))


def emit_fields(expr: relax.Expr) -> list[relax.Var]:
    """Emit a call that returns a tuple, and its elements."""
    bb = relax.BlockBuilder.current()
    result = bb.emit(expr)
    return [bb.emit(relax.TupleGetItem(result, i)) for i in range(len(result.ty.fields))]


def cast_shape(expr: relax.Expr, shape: Sequence[Rows]) -> nn.Tensor:
    """The value of `expr` as a tensor of `shape`, whose fresh dimensions take the sizes found at run time."""
    cast = relax.TensorType(list(shape), str(expr.ty.dtype))
    return nn.Tensor(_expr=relax.BlockBuilder.current().match_cast(expr, cast))


@dataclass(frozen=True, eq=False)
class SymbolicKernelMap:
    """A kernel map in the graph.

    Three int32 matrices and `rows` int64 [2], as the map ops make them for the target in scope, see `MapLayout`.
    As a tuple of four tensors it goes out of one function and into another; `spec` is its type there.
    """

    pair_in: nn.Tensor
    pair_out: nn.Tensor
    segment: nn.Tensor
    rows: nn.Tensor

    @classmethod
    def of(cls, fields: Sequence[relax.Expr]) -> "SymbolicKernelMap":
        """From the four elements that a map op returns."""
        sizes: dict[str, tvm.tirx.Var] = {}
        shapes = [
            [sizes.setdefault(dim, dimension(dim)) if isinstance(dim, str) else dim for dim in dims]
            for dims in map_layout().DIMS
        ]
        return cls(*(cast_shape(element, shape) for element, shape in zip(fields, shapes, strict=True)))

    @property
    def fields(self) -> tuple[nn.Tensor, ...]:
        return self.pair_in, self.pair_out, self.segment, self.rows

    @property
    def expr(self) -> relax.Expr:
        """The map as an argument of an op."""
        return relax.Tuple([element._expr for element in self.fields])

    @staticmethod
    def spec(name: str) -> tuple[spec.Tensor, ...]:
        """What an exported function declares for a map; `name` keeps its dimensions apart from those of other maps."""
        shapes = [[f"{name}_{dim}" if isinstance(dim, str) else dim for dim in dims] for dims in map_layout().DIMS]
        dtypes = ("int32", "int32", "int32", "int64")
        return tuple(spec.Tensor(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))


@dataclass(frozen=True, eq=False)
class Partition:
    """Rows cut into windows, within which attention takes place.

    q_order int32 [N], q_offsets int32 [W + 1]: the queries of window i are rows q_order[q_offsets[i] : q_offsets[i + 1]];
    k_order int32 [M], k_offsets int32 [W + 1]: its keys likewise. Goes from function to function as a `SymbolicKernelMap` does.
    """

    q_order: nn.Tensor
    q_offsets: nn.Tensor
    k_order: nn.Tensor
    k_offsets: nn.Tensor

    @classmethod
    def of(cls, fields: Sequence[relax.Expr]) -> "Partition":
        """From what a partition op returns: four elements, or two where queries are the keys."""
        q_order, q_offsets, *keys = fields
        offsets = dimension("offsets")
        queries = nn.Tensor(_expr=q_order), cast_shape(q_offsets, (offsets,))
        if not keys:
            return cls(*queries, *queries)
        return cls(*queries, cast_shape(keys[0], (dimension("keys"),)), cast_shape(keys[1], (offsets,)))

    @property
    def fields(self) -> tuple[nn.Tensor, ...]:
        return self.q_order, self.q_offsets, self.k_order, self.k_offsets

    @staticmethod
    def spec(name: str) -> tuple[spec.Tensor, ...]:
        """What an exported function declares for a partition; `name` keeps its dimensions apart from those of others."""
        shapes = (f"{name}_queries", f"{name}_offsets", f"{name}_keys", f"{name}_offsets")
        return tuple(spec.Tensor([dim], "int32") for dim in shapes)


class Sites:
    """A coordinate set, and what has been built on it: everything is emitted once, when it is first asked for.

    `coords`: int32 [N, 4] as (batch, x, y, z). `batch`: the number of batch elements, an int or a symbolic dimension;
    needed only by what works on batch elements. What is stored is found again by the same arguments only.
    """

    def __init__(self, coords: nn.Tensor, batch: Rows = 1):
        _check_coords("coords", coords)
        self.coords = coords
        self.batch = batch if isinstance(batch, tvm.ir.Expr) else check_int("nn", "batch", batch, 1)
        self.finer: tuple[Sites, nn.Tensor] | None = None  # where downsampling came from, and the row of each there
        self._built: dict = {}

    @property
    def rows(self) -> Rows:
        return self.coords.shape[0]

    def submanifold_map(self, kernel_size=3, dilation=1, method: str = "auto") -> SymbolicKernelMap:
        """The map of a submanifold convolution, see `op.submanifold_map`."""
        kernel, dilation = _axes("kernel_size", kernel_size), _axes("dilation", dilation)
        return self._once(
            ("submanifold", kernel, dilation),
            lambda: SymbolicKernelMap.of(emit_fields(op.submanifold_map(self.coords._expr, kernel, dilation, method))),
        )

    def put_submanifold_map(self, kernel_map: SymbolicKernelMap, kernel_size=3, dilation=1) -> None:
        """Use a map that was built earlier, by another function."""
        self._built["submanifold", _axes("kernel_size", kernel_size), _axes("dilation", dilation)] = kernel_map

    def strided(
        self,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        shape="infer",
        transposed=False,
        method: str = "auto",
        *,
        output_padding=0,
        ceil_mode: bool = False,
    ) -> tuple["Sites", SymbolicKernelMap]:
        """Output sites, in a number known at run time, and map of a strided or transposed convolution: `op.strided_map`."""
        axes = _geometry_axes(kernel_size, stride, padding, dilation)
        border = {"output_padding": _axes("output_padding", output_padding, 0), "ceil_mode": ceil_mode}
        shape = shape if shape is None or isinstance(shape, str) else _numbers("shape", shape, 1)

        def build():
            call = op.strided_map(self.coords._expr, **axes, shape=shape, transposed=transposed, method=method, **border)
            coords, kernel_map = emit_fields(call)
            bb = relax.BlockBuilder.current()
            fields = [bb.emit(relax.TupleGetItem(kernel_map, i)) for i in range(4)]
            return Sites(cast_shape(coords, (dimension("rows"), 4)), self.batch), SymbolicKernelMap.of(fields)

        return self._once(("strided", *axes.values(), shape, transposed, *border.values()), build)

    def map_to(
        self, target: "Sites", kernel_size, stride=1, padding=0, dilation=1, transposed=False, method: str = "auto"
    ) -> SymbolicKernelMap:
        """The map from these sites to others, which the caller chose, see `op.kernel_map`."""
        check_sites("map_to", target)
        axes = _geometry_axes(kernel_size, stride, padding, dilation)
        if target is self and not transposed and axes == _centred(axes["kernel_size"], axes["dilation"]):
            return self.submanifold_map(axes["kernel_size"], axes["dilation"], method)

        def build():
            call = op.kernel_map(self.coords._expr, target.coords._expr, **axes, transposed=transposed, method=method)
            return SymbolicKernelMap.of(emit_fields(call))

        return self._once(("to", target, *axes.values(), transposed), build)

    def inverse_map(self, kernel_map: SymbolicKernelMap) -> SymbolicKernelMap:
        """The inverse of a map that reads from these sites, see `op.inverse_map`."""
        return self._once(
            ("inverse", kernel_map),
            lambda: SymbolicKernelMap.of(emit_fields(op.inverse_map(kernel_map.expr, self.coords._expr))),
        )

    def downsampled(self, factor=2) -> tuple["Sites", nn.Tensor]:
        """The distinct sites after division by `factor`, ascending, and the row there of every site here, int32 [N]."""
        factor = _axes("factor", factor)

        def build():
            coords, inverse = emit_fields(op.downsample(self.coords._expr, factor))
            sites = Sites(cast_shape(coords, (dimension("rows"), 4)), self.batch)
            inverse = nn.Tensor(_expr=inverse)
            sites.finer = (self, inverse)
            return sites, inverse

        return self._once(("downsampled", factor), build)

    def put_downsampled(self, coords: nn.Tensor, inverse: nn.Tensor, factor=2) -> "Sites":
        """Use coordinates int32 [M, 4] and index int32 [N] that were built earlier; returns the coarser sites."""
        sites = Sites(coords, self.batch)
        sites.finer = (self, inverse)
        self._built["downsampled", _axes("factor", factor)] = (sites, inverse)
        return sites

    def subdivided(self, factor=2) -> tuple["Sites", nn.Tensor]:
        """The children of every site, those of one together, and the row of each child's parent, int32 [N * children]."""
        factor = _axes("factor", factor)

        def build():
            children = prod(factor)
            sites = Sites(emit(op.subdivide(self.coords._expr, factor)), self.batch)
            numbers = emit(relax.op.arange(0, self.rows * children, 1, "int32"))
            return sites, emit(relax.op.floor_divide(numbers._expr, relax.const(children, "int32")))

        return self._once(("subdivided", factor), build)

    def batch_index(self) -> nn.Tensor:
        """The batch element of every row, int32 [N]."""

        def build():
            column = emit(relax.op.strided_slice(self.coords._expr, [1], [0], [1]))
            return emit(relax.op.reshape(column._expr, (self.rows,)))

        return self._once("batch_index", build)

    def put_batch_index(self, batch_index: nn.Tensor) -> None:
        """Use a batch index that was found earlier."""
        self._built["batch_index"] = batch_index

    def offsets(self) -> nn.Tensor:
        """Where the rows of each batch element start, int32 [batch + 1]; they must ascend, see `op.batch_offsets`."""
        return self._once("offsets", lambda: emit(op.batch_offsets(self.coords._expr, self.batch)))

    def put_offsets(self, offsets: nn.Tensor) -> None:
        """Use offsets that were built earlier."""
        self._built["offsets"] = offsets

    def windows(self, window, shift=0) -> Partition:
        """The rows by windows of voxels, see `op.window_partition`."""
        window, shift = window_axes("nn", window, shift)
        return self._once(
            ("windows", window, shift),
            lambda: Partition.of(emit_fields(op.window_partition(self.coords._expr, window, shift))),
        )

    def put_windows(self, partition: Partition, window, shift=0) -> None:
        """Use a partition that was built earlier, by another function."""
        window, shift = window_axes("nn", window, shift)
        self._built["windows", window, shift] = partition

    def serialized(self, window: Rows, shift_sequence: Rows = 0, shift=0, mode: str = "z_order", bits: int = BITS) -> Partition:
        """The rows by overlapping windows along a curve, see `op.serialized_partition`."""
        arguments = window, shift_sequence, _numbers("shift", shift, LEAST_SHIFT), mode, bits
        return self._once(
            ("serialized", *arguments),
            lambda: Partition.of(emit_fields(op.serialized_partition(self.coords._expr, *arguments))),
        )

    def put_serialized(
        self,
        partition: Partition,
        window: Rows,
        shift_sequence: Rows = 0,
        shift=0,
        mode: str = "z_order",
        bits: int = BITS,
    ) -> None:
        """Use a partition that was built earlier, by another function."""
        self._built["serialized", window, shift_sequence, _numbers("shift", shift, LEAST_SHIFT), mode, bits] = partition

    def _once(self, key, build):
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]


@dataclass(frozen=True, eq=False)
class Link:
    """A layer that led from sites to sites, kept under its `indice_key` for the layer that undoes it."""

    source: Sites
    target: Sites
    kernel_map: SymbolicKernelMap


@dataclass(frozen=True, eq=False)
class SymbolicSparseTensor:
    """Features on sites, as modules take and return them: `feats` float32, bfloat16 or float16 [N, C], row i at site i.

    `links`: layers that can be undone, by their key; it is passed on from tensor to tensor.
    """

    feats: nn.Tensor
    sites: Sites
    links: dict[str, Link] = field(default_factory=dict)

    @classmethod
    def of(cls, feats: nn.Tensor, coords: nn.Tensor, batch: Rows = 1) -> "SymbolicSparseTensor":
        """From features [N, C] and coordinates int32 [N, 4] of `batch` elements.

        ValueError if they do not fit, and where they may be of unequal length: the rows of both must have one name.
        """
        if not isinstance(feats, nn.Tensor) or feats.ndim != 2:
            raise ValueError(f"feats: expected a tensor [N, C], given {feats!r}")
        _check_coords("coords", coords)
        if not tvm.sym.Analyzer().can_prove(feats.shape[0] == coords.shape[0]):
            raise ValueError(
                f"feats: expected as many rows as coords, {coords.shape[0]}, given {feats.shape[0]}; in the specification of a "
                "function the rows of both have the same name"
            )
        return cls(feats, Sites(coords, batch))

    @property
    def coords(self) -> nn.Tensor:
        return self.sites.coords

    @property
    def channels(self) -> int:
        return int(self.feats.shape[1])

    def with_feats(self, feats: nn.Tensor) -> "SymbolicSparseTensor":
        """Other features on the same sites."""
        return replace(self, feats=feats)

    def __add__(self, other: "SymbolicSparseTensor") -> "SymbolicSparseTensor":
        """The sum of features on the same sites. ValueError for other sites, channels or dtypes."""
        check_sparse("+", other)
        if other.sites is not self.sites:
            raise ValueError("+: expected features on the same sites, given others")
        given = [(x.channels, str(x.feats.dtype)) for x in (self, other)]
        if given[0] != given[1]:
            raise ValueError(f"+: expected {given[0][0]} channels of {given[0][1]}, given {given[1][0]} of {given[1][1]}")
        summed = emit(relax.op.add(self.feats._expr, other.feats._expr), "sum")
        return replace(self, feats=summed, links=self.links | other.links)

    def moved(self, feats: nn.Tensor, sites: Sites) -> "SymbolicSparseTensor":
        """Features on other sites, which still know the layers that led there."""
        return replace(self, feats=feats, sites=sites)


def check_sparse(owner: str, x) -> None:
    """ValueError unless `x` is a `SymbolicSparseTensor`."""
    if not isinstance(x, SymbolicSparseTensor):
        raise ValueError(f"{owner}: x: expected a SymbolicSparseTensor, given {x!r}")


def check_sites(owner: str, sites) -> None:
    """ValueError unless `sites` is a `Sites`."""
    if not isinstance(sites, Sites):
        raise ValueError(f"{owner}: sites: expected a Sites, given {sites!r}")


def _geometry_axes(kernel_size, stride, padding, dilation) -> dict[str, tuple[int, int, int]]:
    axes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    return {name: _axes(name, value) for name, value in axes.items()} | {"padding": _axes("padding", padding, 0)}


def _centred(kernel: tuple[int, int, int], dilation: tuple[int, int, int]) -> dict | None:
    """The geometry of a submanifold convolution; None for an even kernel, which has no centre."""
    if any(k % 2 == 0 for k in kernel):
        return None
    padding = tuple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    return _geometry_axes(kernel, 1, padding, dilation)


def _axes(name: str, value, least: int = 1) -> tuple[int, int, int]:
    return triple("nn", name, value, least)


def _numbers(name: str, value, least: int) -> tuple[Rows, ...]:
    """An int or three, or symbolic dimensions in their place, as three."""
    shape = dimensions("nn", name, value, least)
    return tuple(int(axis) if isinstance(axis, tirx.IntImm) else axis for axis in shape.values)


def _check_coords(name: str, coords: nn.Tensor) -> None:
    if not isinstance(coords, nn.Tensor) or coords.dtype != "int32" or coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"{name}: expected an int32 tensor [N, 4], given {coords!r}")
