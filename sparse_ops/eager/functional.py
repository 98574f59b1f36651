"""Eager face, functions: our ops on numpy, torch or TVM arrays, without building a graph.

Every function compiles the op once per configuration (channels, dtype, options; never the number of rows) and keeps it, see
`cache`. Arrays go in and come out without copies, results are of the kind of the first array. Bad input is a ValueError that
names the argument, what was given and what was expected: arguments by the op's signature, options by its constructor.
"""

from math import prod

import numpy as np
import tvm

from tir_kernels.spec.channel_affine import of_batch_norm
from tir_kernels.spec.geometry import Geometry

from .. import op
from ..op.index import fitting_extent, triple
from ..op.numbers import MOST_SIZE, check_int, check_positive
from ..op.quantize import origins, voxel_sizes
from ..op.signature import FLOATS
from ..op.windows import LEAST_SHIFT, window_axes
from .arrays import Checked, as_kind, as_tensor, dtype_of, kind_of
from .call import CoordinateIndex, KernelMap, Weights, run

__all__ = [
    "CoordinateIndex",
    "KernelMap",
    "Weights",
    "activation",
    "attention",
    "batch_norm",
    "batch_offsets",
    "channel_affine",
    "downsample",
    "flatnonzero",
    "from_dense",
    "gather_rows",
    "group_norm",
    "interpolate",
    "inverse_map",
    "kernel_map",
    "linear",
    "lookup",
    "pool",
    "quantize",
    "segment_pool",
    "serialize",
    "serialized_partition",
    "sparse_conv",
    "strided_map",
    "subdivide",
    "submanifold_map",
    "to_dense",
    "trilinear",
    "union",
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


def union(coords, offsets, method: str = "auto"):
    """Distinct voxels of sets that lie one after the other: (coords [M, 4], inverse [N], rows [P, M]); see `op.union`."""
    arrays = {"coords": coords, "offsets": offsets}
    return _all_as(kind_of(coords), run("union", op.union, "tvm", arrays, {"method": method}))


def flatnonzero(mask):
    """The rows that a mask bool, int8, uint8 or int32 [N] keeps, ascending: int32 [M]; see `op.flatnonzero`."""
    return run("flatnonzero", op.flatnonzero, kind_of(mask), {"mask": mask}, {})


def subdivide(coords, factor=2):
    """Children of every voxel, int32 [N * fx * fy * fz, 4]; see `op.subdivide`."""
    options = {"factor": triple("subdivide", "factor", factor, 1)}
    return run("subdivide", op.subdivide, kind_of(coords), {"coords": coords}, options)


def lookup(coords, queries, method: str = "auto", *, index: CoordinateIndex | None = None):
    """Row of each query int32 [M, 4] in coords int32 [N, 4], or -1: int32 [M]. `index`: that of coords."""
    return run("lookup", op.lookup, kind_of(coords), {"coords": coords, "queries": queries}, {"method": method}, index)


def quantize(points, voxel_size, batch_index=None, origin=None, stride=1):
    """The voxel of each point float32 [P, 3], with its batch index int32 [P] or 0: int32 [P, 4]; see `op.quantize`.

    voxel_size and origin, a number or three, may differ from call to call: nothing is compiled anew.
    """
    arrays, options = _grid("quantize", points, voxel_size, batch_index, origin, stride)
    return run("quantize", op.quantize, kind_of(points), arrays, options)


def trilinear(
    coords,
    points,
    voxel_size,
    batch_index=None,
    origin=None,
    stride=1,
    normalize: bool = True,
    method: str = "auto",
    *,
    index: CoordinateIndex | None = None,
):
    """The eight voxels of coords int32 [N, 4] around each point and their weights: (int32 [P, 8], float32 [P, 8]).

    Points and grid as in `quantize`; see `op.trilinear`. `index`: that of coords. Results are of the kind of the points.
    """
    arrays, options = _grid("trilinear", points, voxel_size, batch_index, origin, stride)
    options |= {"normalize": normalize, "method": method}
    return _all_as(kind_of(points), run("trilinear", op.trilinear, "tvm", {"coords": coords, **arrays}, options, index))


def interpolate(x, index, weight):
    """Weighted sums of rows: x [N, C], index int32 [P, K] (-1: none), weight float32 [P, K] -> [P, C]; see `op.interpolate`."""
    return run("interpolate", op.interpolate, kind_of(x), {"x": x, "index": index, "weight": weight}, {})


def window_partition(coords, window, shift=0):
    """Rows of int32 [N, 4] by window: (order int32 [N], offsets int32 [W + 1]); see `op.window_partition`."""
    window, shift = window_axes("window_partition", window, shift)
    given = {"coords": coords, "shift": shift}
    return _all_as(kind_of(coords), run("window_partition", op.window_partition, "tvm", given, {"window": window}))


def serialize(coords, mode: str = "z_order", shift=0, bits: int = 10):
    """Place of every row of int32 [N, 4] along a space-filling curve: codes [N]; see `op.serialize`."""
    given = {"coords": coords, "shift": triple("serialize", "shift", shift, LEAST_SHIFT, MOST_SIZE)}
    return run("serialize", op.serialize, kind_of(coords), given, {"mode": mode, "bits": bits})


def serialized_partition(coords, window: int, shift_sequence: int = 0, shift=0, mode: str = "z_order", bits: int = 10):
    """Overlapping windows along a curve: (q_order, q_offsets, k_order, k_offsets); see `op.serialized_partition`."""
    name = "serialized_partition"
    given = {
        "coords": coords,
        "window": (check_int(name, "window", window, 1),),
        "shift_sequence": (check_int(name, "shift_sequence", shift_sequence, 0),),
        "shift": triple(name, "shift", shift, LEAST_SHIFT, MOST_SIZE),
    }
    out = run(name, op.serialized_partition, "tvm", given, {"mode": mode, "bits": bits})
    return _all_as(kind_of(coords), out)


def submanifold_map(
    coords, kernel_size=3, dilation=1, method: str = "auto", *, index: CoordinateIndex | None = None
) -> KernelMap:
    """The kernel map of a submanifold convolution on coords int32 [N, 4]; see `op.submanifold_map`. `index`: that of coords."""
    tensor = _coords(coords)
    kernel = triple("submanifold_map", "kernel_size", kernel_size, 1)
    dilation = triple("submanifold_map", "dilation", dilation, 1)
    options = {"kernel_size": kernel, "dilation": dilation, "method": method}
    arrays = run("submanifold_map", op.submanifold_map, "tvm", {"coords": Checked(tensor, "int32")}, options, index)
    return KernelMap(tensor, tensor, Geometry.submanifold(kernel, dilation), tuple(arrays))


def _geometry_options(name: str, kernel_size, stride, padding, dilation, transposed: bool) -> dict:
    return {
        "kernel_size": triple(name, "kernel_size", kernel_size, 1),
        "stride": triple(name, "stride", stride, 1),
        "padding": triple(name, "padding", padding, 0),
        "dilation": triple(name, "dilation", dilation, 1),
        "transposed": transposed,
    }


def strided_map(
    coords,
    kernel_size,
    stride=1,
    padding=0,
    dilation=1,
    shape="infer",
    transposed: bool = False,
    method: str = "auto",
    *,
    output_padding=0,
    ceil_mode: bool = False,
    index: CoordinateIndex | None = None,
) -> KernelMap:
    """Output sites (`coords_out`) and kernel map of a strided or transposed convolution; see `op.strided_map`.

    `index`: that of coords.
    """
    tensor = _coords(coords)
    axes = _geometry_options("strided_map", kernel_size, stride, padding, dilation, transposed)
    axes |= {"output_padding": triple("strided_map", "output_padding", output_padding, 0), "ceil_mode": ceil_mode}
    extents = None if shape is None or isinstance(shape, str) else triple("strided_map", "shape", shape, 1, MOST_SIZE)
    if extents is not None:
        fitting_extent("", extents, Geometry(*axes.values()))
    options = {**axes, "method": method} | ({"shape": shape} if extents is None else {})
    given = {"coords": Checked(tensor, "int32"), "shape": extents}
    out, arrays = run("strided_map", op.strided_map, "tvm", given, options, index)
    return KernelMap(tensor, out, Geometry(*axes.values()), tuple(arrays))


def kernel_map(
    coords_in,
    coords_out,
    kernel_size,
    stride=1,
    padding=0,
    dilation=1,
    transposed: bool = False,
    method: str = "auto",
    *,
    index: CoordinateIndex | None = None,
) -> KernelMap:
    """The kernel map from coords_in int32 [N, 4] to chosen coords_out int32 [M, 4]; see `op.kernel_map`.

    `index`: that of coords_in.
    """
    sides = {
        name: side.tensor if type(side) is Checked else as_tensor(side, name, ("int32",), (None, 4))
        for name, side in (("coords_in", coords_in), ("coords_out", coords_out))
    }
    axes = _geometry_options("kernel_map", kernel_size, stride, padding, dilation, transposed)
    arrays = {name: Checked(tensor, "int32") for name, tensor in sides.items()}
    out = run("kernel_map", op.kernel_map, "tvm", arrays, {**axes, "method": method}, index)
    return KernelMap(*sides.values(), Geometry(*axes.values()), tuple(out))


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


def activation(x, name: str):
    """The activation `name` of every element of x, of any shape: "relu", "silu", "gelu" or "gelu_tanh"; see `op.activation`."""
    tensor = as_tensor(x, "x", FLOATS, (None,) * len(getattr(x, "shape", ())))
    flat = tensor._create_view((prod(tensor.shape),), tensor.dtype)  # one function serves all shapes
    out = run("activation", op.activation, "tvm", {"x": Checked(flat, dtype_of(x))}, {"name": name})
    return as_kind(out._create_view(tensor.shape, tensor.dtype), kind_of(x))


def pool(x, kernel_map: KernelMap, mode: str = "mean", count_bias: int = 0, max_from_zero: bool = False):
    """Sum, mean or maximum of the input rows of each output row of a map: x [N, C] -> [M, C]; see `op.pool`."""
    arrays = {"x": x, "kernel_map": kernel_map, "like": _side(kernel_map, "out")}
    options = {"mode": mode, "count_bias": count_bias, "max_from_zero": max_from_zero}
    return run("pool", op.pool, kind_of(x), arrays, options)


def segment_pool(x, index, rows: int, mode: str = "mean", count_bias: int = 0, max_from_zero: bool = False):
    """Sum, mean, maximum or first of the rows with the same index: x [N, C], index int32 [N] -> [rows, C]; `op.segment_pool`.

    With the inverse of `downsample` this pools voxels, with the batch column of the coordinates batch elements.
    """
    rows = check_int("segment_pool", "rows", rows, 0)
    arrays = {"x": x, "index": index, "like": Checked(tvm.runtime.empty((rows, 0), "int32"), "int32")}
    options = {"mode": mode, "count_bias": count_bias, "max_from_zero": max_from_zero}
    return run("segment_pool", op.segment_pool, kind_of(x), arrays, options)


def gather_rows(x, index):
    """x [N, C], index int32 [M] -> [M, C]: x[index], zeros where the index is -1; nearest upsampling, see `op.gather_rows`."""
    return run("gather_rows", op.gather_rows, kind_of(x), {"x": x, "index": index}, {})


def to_dense(x, coords, batch: int, shape: tuple[int, int, int], channels_last: bool = False):
    """Rows at their places in a grid of zeros: [batch, C, *shape], or [batch, *shape, C]; see `op.to_dense`."""
    shape = triple("to_dense", "shape", shape, 1, MOST_SIZE)
    extents = {"batch": (check_int("to_dense", "batch", batch, 1),), "shape": shape}
    options = {"channels_last": channels_last}
    return run("to_dense", op.to_dense, kind_of(x), {"x": x, "coords": coords, **extents}, options)


def from_dense(dense, coords, channels_last: bool = False):
    """The rows of a grid [B, C, X, Y, Z] (or [B, X, Y, Z, C]) at coords int32 [N, 4]: [N, C]; see `op.from_dense`."""
    arrays = {"dense": dense, "coords": coords}
    return run("from_dense", op.from_dense, kind_of(dense), arrays, {"channels_last": channels_last})


def batch_offsets(coords, batch: int):
    """Offsets int32 [batch + 1] of the batch elements in coords int32 [N, 4]; see `op.batch_offsets`."""
    given = {"coords": coords, "batch": (check_int("batch_offsets", "batch", batch, 1),)}
    return run("batch_offsets", op.batch_offsets, kind_of(coords), given, {})


def group_norm(x, offsets, weight, bias, groups: int, eps: float = 1e-5, activation: str = "none"):
    """Group norm over the voxels of each batch element: x [N, C], offsets int32 [B + 1] -> [N, C]; see `op.group_norm`."""
    arrays = {"x": x, "batch_offsets": offsets, "weight": weight, "bias": bias}
    options = {"groups": groups, "eps": eps, "activation": activation}
    return run("group_norm", op.group_norm, kind_of(x), arrays, options)


def channel_affine(x, scale, shift, activation: str = "none"):
    """`activation(x * scale + shift)` by channel: x [N, C] or [B, C, *spatial], scale, shift [C]; see `op.channel_affine`."""
    (channels,) = as_tensor(scale, "scale", ("float32",), (None,)).shape
    spatial = (None,) * (len(getattr(x, "shape", ())) - 2)
    features = Checked(as_tensor(x, "x", FLOATS, (None, channels, *spatial)), dtype_of(x))
    arrays = {"x": features, "scale": scale, "shift": shift}
    return run("channel_affine", op.channel_affine, kind_of(x), arrays, {"activation": activation})


def batch_norm(x, running_mean, running_var, weight=None, bias=None, *, eps: float = 1e-5, activation: str = "none"):
    """`activation((x - running_mean) / sqrt(running_var + eps) * weight + bias)`: x [N, C] or [B, C, *spatial], others
    float32 [C]."""
    affine = affine_of_batch_norm(running_mean, running_var, weight, bias, eps)
    return channel_affine(x, *(vector.astype("float32") for vector in affine), activation)


def affine_of_batch_norm(running_mean, running_var, weight, bias, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift), float64 [C], of the batch norm of arrays float32 [C]; weight and bias may be None."""
    eps, channels, vectors = check_positive("batch_norm", "eps", eps), None, []
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, array in given.items():
        if array is not None or not vectors[1:]:  # statistics must be there
            tensor = as_tensor(array, name, ("float32",), (channels,))
            array, channels = as_kind(tensor, "numpy"), tensor.shape[0]
        vectors.append(array)
    return of_batch_norm(*vectors, eps)


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


def _grid(name: str, points, voxel_size, batch_index, origin, stride) -> tuple[dict, dict]:
    """Arguments and options of ops on points; numbers become arrays, which a compiled function takes."""
    arrays = {
        "points": points,
        "voxel_size": voxel_sizes(name, voxel_size),
        "batch_index": batch_index,
        "origin": None if origin is None else origins(name, origin),
    }
    return arrays, {"stride": triple(name, "stride", stride, 1)}


def _all_as(kind: str, tensors) -> tuple:
    """Several results, of one kind."""
    return tuple(as_kind(tensor, kind) for tensor in tensors)
