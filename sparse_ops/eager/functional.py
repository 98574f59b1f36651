"""Eager face, functions: our ops on numpy, torch or TVM arrays, without building a graph.

Every function compiles the op once per configuration (channels, dtype, options; never the number of rows) and keeps it, see
`cache`. Arrays go in and come out without copies, results are of the kind of the first array. Bad input is a ValueError that
names the argument, what was given and what was expected: arguments by the op's signature, options by its constructor.
"""

import tvm

from tir_kernels.spec.geometry import Geometry

from .. import op
from ..op.index import triple
from ..op.windows import LEAST_SHIFT, window_axes
from .arrays import Checked, as_kind, as_tensor, kind_of
from .call import KernelMap, Weights, run

__all__ = [
    "KernelMap",
    "Weights",
    "attention",
    "batch_offsets",
    "downsample",
    "from_dense",
    "gather_rows",
    "group_norm",
    "inverse_map",
    "linear",
    "lookup",
    "pool",
    "segment_pool",
    "serialize",
    "serialized_partition",
    "sparse_conv",
    "strided_map",
    "subdivide",
    "submanifold_map",
    "to_dense",
    "unique",
    "upsampled_conv",
    "window_partition",
]


def _coords(array) -> tvm.runtime.Tensor:
    return array.tensor if type(array) is Checked else as_tensor(array, "coords", ("int32",), (None, 4))


def _side(kernel_map, side: str) -> Checked | None:
    """The coordinates that a map reads from ("in") or writes to ("out"); None for what is no map."""
    return Checked(getattr(kernel_map, f"coords_{side}"), "int32") if isinstance(kernel_map, KernelMap) else None


def unique(coords, method: str = "auto"):
    """Distinct rows of int32 [N, 4], ascending, and the inverse int32 [N]; see `op.unique`."""
    return downsample(coords, 1, method)


def downsample(coords, factor=2, method: str = "auto"):
    """Distinct voxels after floor division by `factor`: (coords int32 [M, 4] ascending, inverse int32 [N])."""
    options = {"factor": triple("downsample", "factor", factor, 1), "method": method}
    return _all_as(kind_of(coords), run("unique", op.downsample, "tvm", {"coords": coords}, options))


def subdivide(coords, factor=2):
    """Children of every voxel, int32 [N * fx * fy * fz, 4]; see `op.subdivide`."""
    options = {"factor": triple("subdivide", "factor", factor, 1)}
    return run("subdivide", op.subdivide, kind_of(coords), {"coords": coords}, options)


def lookup(coords, queries, method: str = "auto"):
    """Row of each query int32 [M, 4] in coords int32 [N, 4], or -1: int32 [M]."""
    return run("lookup", op.lookup, kind_of(coords), {"coords": coords, "queries": queries}, {"method": method})


def window_partition(coords, window, shift=0):
    """Rows of int32 [N, 4] by window: (order int32 [N], offsets int32 [W + 1]); see `op.window_partition`."""
    options = dict(zip(("window", "shift"), window_axes("window_partition", window, shift), strict=True))
    return _all_as(kind_of(coords), run("window_partition", op.window_partition, "tvm", {"coords": coords}, options))


def serialize(coords, mode: str = "z_order", shift=0):
    """Place of every row of int32 [N, 4] along a space-filling curve: codes int32 [N]; see `op.serialize`."""
    options = {"mode": mode, "shift": triple("serialize", "shift", shift, LEAST_SHIFT)}
    return run("serialize", op.serialize, kind_of(coords), {"coords": coords}, options)


def serialized_partition(coords, window: int, shift_sequence: int = 0, shift=0, mode: str = "z_order"):
    """Overlapping windows along a curve: (q_order, q_offsets, k_order, k_offsets); see `op.serialized_partition`."""
    shift = triple("serialized_partition", "shift", shift, LEAST_SHIFT)
    options = {"window": window, "shift_sequence": shift_sequence, "shift": shift, "mode": mode}
    out = run("serialized_partition", op.serialized_partition, "tvm", {"coords": coords}, options)
    return _all_as(kind_of(coords), out)


def submanifold_map(coords, kernel_size=3, dilation=1, method: str = "auto") -> KernelMap:
    """The kernel map of a submanifold convolution on coords int32 [N, 4]; see `op.submanifold_map`."""
    tensor = _coords(coords)
    kernel = triple("submanifold_map", "kernel_size", kernel_size, 1)
    dilation = triple("submanifold_map", "dilation", dilation, 1)
    options = {"kernel_size": kernel, "dilation": dilation, "method": method}
    arrays = run("submanifold_map", op.submanifold_map, "tvm", {"coords": Checked(tensor, "int32")}, options)
    return KernelMap(tensor, tensor, Geometry.submanifold(kernel, dilation), tuple(arrays))


def strided_map(
    coords, kernel_size, stride=1, padding=0, dilation=1, shape="infer", transposed: bool = False, method: str = "auto"
) -> KernelMap:
    """Output sites (`coords_out`) and kernel map of a strided or transposed convolution; see `op.strided_map`."""
    tensor = _coords(coords)
    axes = {
        "kernel_size": triple("strided_map", "kernel_size", kernel_size, 1),
        "stride": triple("strided_map", "stride", stride, 1),
        "padding": triple("strided_map", "padding", padding, 0),
        "dilation": triple("strided_map", "dilation", dilation, 1),
        "transposed": transposed,
    }
    shape = shape if shape is None or isinstance(shape, str) else triple("strided_map", "shape", shape, 1)
    options = {**axes, "shape": shape, "method": method}
    out, arrays = run("strided_map", op.strided_map, "tvm", {"coords": Checked(tensor, "int32")}, options)
    return KernelMap(tensor, out, Geometry(*axes.values()), tuple(arrays))


def inverse_map(kernel_map: KernelMap) -> KernelMap:
    """The map of the inverse convolution: the same triples, with input and output exchanged."""
    arrays = run("inverse_map", op.inverse_map, "tvm", {"kernel_map": kernel_map, "coords": _side(kernel_map, "in")}, {})
    return KernelMap(kernel_map.coords_out, kernel_map.coords_in, kernel_map.geometry, tuple(arrays), not kernel_map.inverted)


def sparse_conv(x, weight, kernel_map: KernelMap, bias=None, residual=None, activation: str = "none", groups: int = 1):
    """Sparse convolution: x [N, Cin], weight [Cout, kx, ky, kz, Cin / groups] -> [M, Cout]; see `op.sparse_conv`.

    `weight` may be `Weights(weight, bias)`, which packs once for many calls.
    """
    arrays = {
        "x": x,
        "weight": weight,
        "kernel_map": kernel_map,
        "coords_out": _side(kernel_map, "out"),
        "bias": bias,
        "residual": residual,
    }
    return run("sparse_conv", op.sparse_conv, kind_of(x), arrays, {"activation": activation, "groups": groups})


def upsampled_conv(x, weight, kernel_map: KernelMap, parent, bias=None, residual=None, activation: str = "none"):
    """`sparse_conv(gather_rows(x, parent), weight, kernel_map, ...)` for less work, on a submanifold map.

    x [M, Cin], weight [Cout, kx, ky, kz, Cin] or `Weights`, parent int32 [N] -> [N, Cout]; see `op.upsampled_conv`.
    """
    arrays = {
        "x": x,
        "weight": weight,
        "kernel_map": kernel_map,
        "parent": parent,
        "bias": bias,
        "residual": residual,
    }
    return run("upsampled_conv", op.upsampled_conv, kind_of(x), arrays, {"activation": activation})


def linear(x, weight, bias=None, residual=None, activation: str = "none"):
    """Linear layer: x [N, Cin], weight [Cout, Cin] -> [N, Cout]; `weight` may be `Weights`. See `op.linear`."""
    arrays = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    return run("linear", op.linear, kind_of(x), arrays, {"activation": activation})


def pool(x, kernel_map: KernelMap, mode: str = "mean", count_bias: int = 0, max_from_zero: bool = False):
    """Sum, mean or maximum of the input rows of each output row of a map: x [N, C] -> [M, C]; see `op.pool`."""
    arrays = {"x": x, "kernel_map": kernel_map, "like": _side(kernel_map, "out")}
    options = {"mode": mode, "count_bias": count_bias, "max_from_zero": max_from_zero}
    return run("pool", op.pool, kind_of(x), arrays, options)


def segment_pool(x, index, rows: int, mode: str = "mean", count_bias: int = 0, max_from_zero: bool = False):
    """Sum, mean or maximum of the rows with the same index: x [N, C], index int32 [N] -> [rows, C]; see `op.segment_pool`.

    With the inverse of `downsample` this pools voxels, with the batch column of the coordinates batch elements.
    """
    arrays = {"x": x, "index": index, "like": Checked(tvm.runtime.empty((rows,), "int32"), "int32")}
    options = {"mode": mode, "count_bias": count_bias, "max_from_zero": max_from_zero}
    return run("segment_pool", op.segment_pool, kind_of(x), arrays, options)


def gather_rows(x, index):
    """x [N, C], index int32 [M] -> [M, C]: x[index], zeros where the index is -1; nearest upsampling, see `op.gather_rows`."""
    return run("gather_rows", op.gather_rows, kind_of(x), {"x": x, "index": index}, {})


def to_dense(x, coords, batch: int, shape: tuple[int, int, int], channels_last: bool = False):
    """Rows at their places in a grid of zeros: [batch, C, *shape], or [batch, *shape, C]; see `op.to_dense`."""
    options = {"batch": batch, "shape": triple("to_dense", "shape", shape, 1), "channels_last": channels_last}
    return run("to_dense", op.to_dense, kind_of(x), {"x": x, "coords": coords}, options)


def from_dense(dense, coords, channels_last: bool = False):
    """The rows of a grid [B, C, X, Y, Z] (or [B, X, Y, Z, C]) at coords int32 [N, 4]: [N, C]; see `op.from_dense`."""
    arrays = {"dense": dense, "coords": coords}
    return run("from_dense", op.from_dense, kind_of(dense), arrays, {"channels_last": channels_last})


def batch_offsets(coords, batch: int):
    """Offsets int32 [batch + 1] of the batch elements in coords int32 [N, 4]; see `op.batch_offsets`."""
    return run("batch_offsets", op.batch_offsets, kind_of(coords), {"coords": coords}, {"batch": batch})


def group_norm(x, offsets, weight, bias, groups: int, eps: float = 1e-5, activation: str = "none"):
    """Group norm over the voxels of each batch element: x [N, C], offsets int32 [B + 1] -> [N, C]; see `op.group_norm`."""
    arrays = {"x": x, "batch_offsets": offsets, "weight": weight, "bias": bias}
    options = {"groups": groups, "eps": eps, "activation": activation}
    return run("group_norm", op.group_norm, kind_of(x), arrays, options)


def attention(q, k, v, q_offsets, k_offsets, scale: float | None = None, q_order=None, k_order=None):
    """Attention within segments: q [Nq, H, D], k, v [Nk, H, D], offsets int32 [B + 1] -> [Nq, H, D].

    q_order int32 [Nq], k_order int32 [Mk]: the rows that offsets count, as partitions give them; see `op.attention`.
    """
    arrays = {
        "q": q,
        "k": k,
        "v": v,
        "q_offsets": q_offsets,
        "k_offsets": k_offsets,
        "q_order": q_order,
        "k_order": k_order,
    }
    return run("attention", op.attention, kind_of(q), arrays, {"scale": scale})


def _all_as(kind: str, tensors) -> tuple:
    """Several results, of one kind."""
    return tuple(as_kind(tensor, kind) for tensor in tensors)
