"""Eager face, functions: our ops on numpy, torch or TVM arrays, without building a graph.

Every function compiles the op once per configuration (channels, dtype, options; never the number of rows) and keeps it, see
`compile_cache`. Arrays go in and come out without copies, results are of the kind of the first array. Bad input is a
ValueError that names the argument, what was given and what was expected.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax

from tir_kernels.spec.geometry import Geometry

from .. import op
from ..build import pack_params
from ..op.index import triple
from ..op.windows import LEAST_SHIFT, window_axes
from .arrays import as_kind, as_tensor, describe, kind_of
from .cache import compiled

FLOATS = ("float32", "bfloat16")
MAP_ARRAYS = ("pair_in", "pair_out", "segment", "rows")


@dataclass(eq=False)
class KernelMap:
    """Which input row meets which output row at each tap: built once, used by every layer on the same coordinates.

    `coords_in` int32 [N, 4] and `coords_out` int32 [M, 4] (TVM tensors), the geometry, and the four arrays of the map.
    """

    coords_in: tvm.runtime.Tensor = field(repr=False)
    coords_out: tvm.runtime.Tensor = field(repr=False)
    geometry: Geometry
    arrays: tuple = field(repr=False)
    inverted: bool = False

    @property
    def taps(self) -> int:
        return self.geometry.taps

    @property
    def num_pairs(self) -> int:
        """Pairs (input row, output row) over all taps: 2 * pairs * Cin * Cout is the work of a convolution."""
        return int(self.arrays[2].numpy()[:, -1].sum(dtype=np.int64))


@dataclass(eq=False)
class Weights:
    """A layer's weight and bias, packed for this machine's kernels on first use and then kept.

    Pass it in place of the `weight` array to `sparse_conv` or `linear` when a layer is called more than once.
    """

    weight: object
    bias: object = None
    _packed: dict = field(default_factory=dict, repr=False)

    def tensors(self, dims: tuple) -> dict[str, tuple]:
        """The arguments `weight` [dims] and `bias` float32 [dims[0]] of a compiled function, checked."""
        weight = as_tensor(self.weight, "weight", FLOATS, dims)
        fixed = {"weight": (weight, tuple(weight.shape))}
        if self.bias is not None:
            fixed["bias"] = (as_tensor(self.bias, "bias", ("float32",), (weight.shape[0],)), (weight.shape[0],))
        return fixed

    def packed(self, machine: relax.VirtualMachine, tensors: dict[str, tuple]) -> list:
        """What the compiled function takes in place of the parameters."""
        if id(machine) not in self._packed:
            parameters = [tensor for tensor, _ in tensors.values()]
            self._packed[id(machine)] = pack_params(machine, "main", parameters.__getitem__)
        return self._packed[id(machine)]


def _module(arguments: list[tuple[str, object]], num_input: int, call: Callable[..., relax.Expr]) -> tvm.IRModule:
    """A module whose `main` takes the named arguments (relax types) and returns `call` of them."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(name, ty) for name, ty in arguments]
    result = call(*variables)  # wrong options raise here, before the builder has opened a scope
    with builder.function("main", variables, attrs={"num_input": num_input}):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(result))
        builder.emit_func_output(result)
    return builder.get()


def _types(tensors: dict[str, tuple[tvm.runtime.Tensor, tuple]]) -> list[tuple[str, object]]:
    """Relax types of tensors given with their dimensions: a name is symbolic, an int is fixed."""
    names: dict[str, tvm.tirx.Var] = {}
    return [
        (
            argument,
            relax.TensorType(
                [names.setdefault(d, tvm.tirx.Var(d, "int64")) if isinstance(d, str) else d for d in dims],
                str(tensor.dtype),
            ),
        )
        for argument, (tensor, dims) in tensors.items()
    ]


def _run(name: str, tensors: dict[str, tuple], call: Callable[..., relax.Expr], options: dict, weights: Weights | None = None):
    """Compile `call(**tensors)` for their dtypes and fixed dimensions, and run it. `weights` follow the other arguments."""
    parameters = weights.tensors(options["weight_dims"]) if weights else {}
    arguments = tensors | parameters
    configuration = {
        "op": name,
        "options": options,
        "arguments": [[argument, str(t.dtype), list(dims)] for argument, (t, dims) in arguments.items()],
    }

    def call_by_name(*variables):
        return call(**dict(zip(arguments, variables, strict=True)))

    machine = compiled(configuration, lambda: _module(_types(arguments), len(tensors), call_by_name))
    packed = weights.packed(machine, parameters) if weights else []
    return machine["main"](*[tensor for tensor, _ in tensors.values()], *packed)


def _coords(array, argument: str = "coords") -> tvm.runtime.Tensor:
    return as_tensor(array, argument, ("int32",), (None, 4))


def unique(coords, method: str = "auto"):
    """Distinct rows of int32 [N, 4], ascending, and the inverse int32 [N]; see `op.unique`."""
    return downsample(coords, 1, method)


def downsample(coords, factor=2, method: str = "auto"):
    """Distinct voxels after floor division by `factor`: (coords int32 [M, 4] ascending, inverse int32 [N])."""
    factor = triple("downsample", "factor", factor, 1)
    kind = kind_of(coords)
    out, inverse = _run(
        "downsample",
        {"coords": (_coords(coords), ("n", 4))},
        lambda coords: op.downsample(coords, factor, method),
        {"factor": factor, "method": method},
    )
    return as_kind(out, kind), as_kind(inverse, kind)


def subdivide(coords, factor=2):
    """Children of every voxel, int32 [N * fx * fy * fz, 4]; see `op.subdivide`."""
    factor = triple("subdivide", "factor", factor, 1)
    out = _run(
        "subdivide",
        {"coords": (_coords(coords), ("n", 4))},
        lambda coords: op.subdivide(coords, factor),
        {"factor": factor},
    )
    return as_kind(out, kind_of(coords))


def lookup(coords, queries, method: str = "auto"):
    """Row of each query int32 [M, 4] in coords int32 [N, 4], or -1: int32 [M]."""
    out = _run(
        "lookup",
        {"coords": (_coords(coords), ("n", 4)), "queries": (_coords(queries, "queries"), ("m", 4))},
        lambda coords, queries: op.lookup(coords, queries, method),
        {"method": method},
    )
    return as_kind(out, kind_of(coords))


def window_partition(coords, window, shift=0):
    """Rows of int32 [N, 4] by window: (order int32 [N], offsets int32 [W + 1]); see `op.window_partition`."""
    window, shift = window_axes("window_partition", window, shift)
    order, offsets = _run(
        "window_partition",
        {"coords": (_coords(coords), ("n", 4))},
        lambda coords: op.window_partition(coords, window, shift),
        {"window": window, "shift": shift},
    )
    return as_kind(order, kind_of(coords)), as_kind(offsets, kind_of(coords))


def serialize(coords, mode: str = "z_order", shift=0):
    """Place of every row of int32 [N, 4] along a space-filling curve: codes int32 [N]; see `op.serialize`."""
    shift = triple("serialize", "shift", shift, LEAST_SHIFT)
    out = _run(
        "serialize",
        {"coords": (_coords(coords), ("n", 4))},
        lambda coords: op.serialize(coords, mode, shift),
        {"mode": mode, "shift": shift},
    )
    return as_kind(out, kind_of(coords))


def serialized_partition(coords, window: int, shift_sequence: int = 0, shift=0, mode: str = "z_order"):
    """Overlapping windows along a curve: (q_order, q_offsets, k_order, k_offsets); see `op.serialized_partition`."""
    shift = triple("serialized_partition", "shift", shift, LEAST_SHIFT)
    out = _run(
        "serialized_partition",
        {"coords": (_coords(coords), ("n", 4))},
        lambda coords: op.serialized_partition(coords, window, shift_sequence, shift, mode),
        {"window": window, "shift_sequence": shift_sequence, "shift": shift, "mode": mode},
    )
    return tuple(as_kind(array, kind_of(coords)) for array in out)


def submanifold_map(coords, kernel_size=3, dilation=1, method: str = "auto") -> KernelMap:
    """The kernel map of a submanifold convolution on coords int32 [N, 4]; see `op.submanifold_map`."""
    tensor = _coords(coords)
    kernel = triple("submanifold_map", "kernel_size", kernel_size, 1)
    dilation = triple("submanifold_map", "dilation", dilation, 1)
    arrays = _run(
        "submanifold_map",
        {"coords": (tensor, ("n", 4))},
        lambda coords: op.submanifold_map(coords, kernel, dilation, method),
        {"kernel_size": kernel, "dilation": dilation, "method": method},
    )
    return KernelMap(tensor, tensor, Geometry.submanifold(kernel, dilation), tuple(arrays))


def strided_map(
    coords, kernel_size, stride=1, padding=0, dilation=1, shape="infer", transposed: bool = False, method: str = "auto"
) -> KernelMap:
    """Output sites (`coords_out`) and kernel map of a strided or transposed convolution; see `op.strided_map`."""
    tensor = _coords(coords)
    geometry = Geometry(
        triple("strided_map", "kernel_size", kernel_size, 1),
        triple("strided_map", "stride", stride, 1),
        triple("strided_map", "padding", padding, 0),
        triple("strided_map", "dilation", dilation, 1),
        transposed,
    )
    axes = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)
    shape = shape if shape is None or isinstance(shape, str) else triple("strided_map", "shape", shape, 1)
    out, arrays = _run(
        "strided_map",
        {"coords": (tensor, ("n", 4))},
        lambda coords: op.strided_map(coords, *axes, shape, transposed, method),
        {"geometry": axes, "shape": shape, "transposed": transposed, "method": method},
    )
    return KernelMap(tensor, out, geometry, tuple(arrays))


def inverse_map(kernel_map: KernelMap) -> KernelMap:
    """The map of the inverse convolution: the same triples, with input and output exchanged."""
    tensors = _map_tensors(kernel_map) | {"coords": (kernel_map.coords_in, ("n", 4))}
    arrays = _run(
        "inverse_map", tensors, lambda coords, **m: op.inverse_map(relax.Tuple([m[name] for name in MAP_ARRAYS]), coords), {}
    )
    return KernelMap(kernel_map.coords_out, kernel_map.coords_in, kernel_map.geometry, tuple(arrays), not kernel_map.inverted)


def _map_tensors(kernel_map: KernelMap) -> dict[str, tuple]:
    """The arrays of a map as arguments; every number of blocks and taps is one compiled function."""
    if not isinstance(kernel_map, KernelMap):
        raise ValueError(f"kernel_map: expected a KernelMap, given {describe(kernel_map)}")
    dims = (("blocks", "slots"), ("blocks", "slots"), ("blocks", "columns"), (2,))
    return {name: (array, d) for name, array, d in zip(MAP_ARRAYS, kernel_map.arrays, dims, strict=True)}


def _features(x, argument: str = "x", channels: int | None = None) -> tvm.runtime.Tensor:
    return as_tensor(x, argument, FLOATS, (None, channels))


def _check_rows(argument: str, given: int, kernel_map: KernelMap) -> None:
    rows = kernel_map.coords_in.shape[0]
    if given != rows:
        raise ValueError(
            f"{argument}: expected {rows} rows, as the coordinates that the kernel map was built for, given {given}"
        )


def _conv_dims(weights: Weights, x: tvm.runtime.Tensor, kernel_map: KernelMap) -> tuple:
    """(Cout, kx, ky, kz, Cin) of a weight, which must fit the features and the map."""
    dims = as_tensor(weights.weight, "weight", (str(x.dtype),), (None,) * 4 + (x.shape[1],)).shape
    kernel = list(dims[1:-1])
    if tuple(kernel) != kernel_map.geometry.kernel:
        raise ValueError(
            f"weight: expected kernel size {list(kernel_map.geometry.kernel)}, as the kernel map's, given {kernel}"
        )
    return tuple(dims)


def sparse_conv(x, weight, kernel_map: KernelMap, bias=None, residual=None, activation: str = "none"):
    """Sparse convolution: x [N, Cin], weight [Cout, kx, ky, kz, Cin] -> [M, Cout]; see `op.sparse_conv`.

    `weight` may be `Weights(weight, bias)`, which packs once for many calls.
    """
    weights = weight if isinstance(weight, Weights) else Weights(weight, bias)
    tensor = _features(x)
    cin = tensor.shape[1]
    arrays = _map_tensors(kernel_map)
    _check_rows("x", tensor.shape[0], kernel_map)
    cout, *_ = dims = _conv_dims(weights, tensor, kernel_map)
    tensors = {"x": (tensor, ("n", cin))} | arrays | {"coords_out": (kernel_map.coords_out, ("m", 4))}
    if residual is not None:
        rows = kernel_map.coords_out.shape[0]
        tensors["residual"] = (as_tensor(residual, "residual", (str(tensor.dtype),), (rows, cout)), ("m", cout))

    def call(x, weight, coords_out, bias=None, residual=None, **arrays):
        fields = relax.Tuple([arrays[name] for name in MAP_ARRAYS])
        return op.sparse_conv(x, weight, fields, coords_out, bias, residual, activation)

    out = _run("sparse_conv", tensors, call, {"activation": activation, "weight_dims": dims}, weights)
    return as_kind(out, kind_of(x))


def upsampled_conv(x, weight, kernel_map: KernelMap, parent, bias=None, residual=None, activation: str = "none"):
    """`sparse_conv(gather_rows(x, parent), weight, kernel_map, ...)` for less work, on a submanifold map.

    x [M, Cin], weight [Cout, kx, ky, kz, Cin] or `Weights`, parent int32 [N] -> [N, Cout]; see `op.upsampled_conv`.
    """
    weights = weight if isinstance(weight, Weights) else Weights(weight, bias)
    tensor = _features(x)
    arrays = _map_tensors(kernel_map)
    rows = kernel_map.coords_in.shape[0]
    cout, *_, cin = dims = _conv_dims(weights, tensor, kernel_map)
    tensors = {"x": (tensor, ("m", cin))} | arrays | {"parent": (as_tensor(parent, "parent", ("int32",), (rows,)), ("n",))}
    if residual is not None:
        tensors["residual"] = (as_tensor(residual, "residual", (str(tensor.dtype),), (rows, cout)), ("n", cout))

    def call(x, weight, parent, bias=None, residual=None, **arrays):
        fields = relax.Tuple([arrays[name] for name in MAP_ARRAYS])
        return op.upsampled_conv(x, weight, fields, parent, bias, residual, activation)

    out = _run("upsampled_conv", tensors, call, {"activation": activation, "weight_dims": dims}, weights)
    return as_kind(out, kind_of(x))


def linear(x, weight, bias=None, residual=None, activation: str = "none"):
    """Linear layer: x [N, Cin], weight [Cout, Cin] -> [N, Cout]; `weight` may be `Weights`. See `op.linear`."""
    weights = weight if isinstance(weight, Weights) else Weights(weight, bias)
    tensor = _features(x)
    cin = tensor.shape[1]
    cout = as_tensor(weights.weight, "weight", (str(tensor.dtype),), (None, cin)).shape[0]
    tensors = {"x": (tensor, ("n", cin))}
    if residual is not None:
        shape = (tensor.shape[0], cout)
        tensors["residual"] = (as_tensor(residual, "residual", (str(tensor.dtype),), shape), ("n", cout))

    def call(x, weight, bias=None, residual=None):
        return op.linear(x, weight, bias, residual, activation)

    out = _run("linear", tensors, call, {"activation": activation, "weight_dims": (cout, cin)}, weights)
    return as_kind(out, kind_of(x))


def _pool_options(mode: str, count_bias: int, max_from_zero: bool) -> dict:
    return {"mode": mode, "count_bias": count_bias, "max_from_zero": max_from_zero}


def pool(x, kernel_map: KernelMap, mode: str = "mean", count_bias: int = 0, max_from_zero: bool = False):
    """Sum, mean or maximum of the input rows of each output row of a map: x [N, C] -> [M, C]; see `op.pool`."""
    tensor, arrays = _features(x), _map_tensors(kernel_map)
    _check_rows("x", tensor.shape[0], kernel_map)
    options = _pool_options(mode, count_bias, max_from_zero)

    def call(x, like, **arrays):
        return op.pool(x, relax.Tuple([arrays[name] for name in MAP_ARRAYS]), like, **options)

    tensors = {"x": (tensor, ("n", tensor.shape[1]))} | arrays | {"like": (kernel_map.coords_out, ("m", 4))}
    return as_kind(_run("pool", tensors, call, options), kind_of(x))


def segment_pool(x, index, rows: int, mode: str = "mean", count_bias: int = 0, max_from_zero: bool = False):
    """Sum, mean or maximum of the rows with the same index: x [N, C], index int32 [N] -> [rows, C]; see `op.segment_pool`.

    With the inverse of `downsample` this pools voxels, with the batch column of the coordinates batch elements.
    """
    tensor = _features(x)
    places = as_tensor(index, "index", ("int32",), (tensor.shape[0],))
    like = tvm.runtime.empty((rows,), "int32")
    options = _pool_options(mode, count_bias, max_from_zero)
    out = _run(
        "segment_pool",
        {"x": (tensor, ("n", tensor.shape[1])), "index": (places, ("n",)), "like": (like, ("m",))},
        lambda x, index, like: op.segment_pool(x, index, like, **options),
        options,
    )
    return as_kind(out, kind_of(x))


def gather_rows(x, index):
    """x [N, C], index int32 [M] -> [M, C]: x[index], zeros where the index is -1; nearest upsampling, see `op.gather_rows`."""
    tensor = _features(x)
    out = _run(
        "gather_rows",
        {"x": (tensor, ("n", tensor.shape[1])), "index": (as_tensor(index, "index", ("int32",), (None,)), ("m",))},
        lambda x, index: op.gather_rows(x, index),
        {},
    )
    return as_kind(out, kind_of(x))


def to_dense(x, coords, batch: int, shape: tuple[int, int, int], channels_last: bool = False):
    """Rows at their places in a grid of zeros: [batch, C, *shape], or [batch, *shape, C]; see `op.to_dense`."""
    tensor = _features(x)
    shape = triple("to_dense", "shape", shape, 1)
    places = as_tensor(coords, "coords", ("int32",), (tensor.shape[0], 4))
    out = _run(
        "to_dense",
        {"x": (tensor, ("n", tensor.shape[1])), "coords": (places, ("n", 4))},
        lambda x, coords: op.to_dense(x, coords, batch, shape, channels_last),
        {"batch": batch, "shape": shape, "channels_last": channels_last},
    )
    return as_kind(out, kind_of(x))


def from_dense(dense, coords, channels_last: bool = False):
    """The rows of a grid [B, C, X, Y, Z] (or [B, X, Y, Z, C]) at coords int32 [N, 4]: [N, C]; see `op.from_dense`."""
    tensor = as_tensor(dense, "dense", FLOATS, (None,) * 5)
    out = _run(
        "from_dense",
        {"dense": (tensor, tuple(tensor.shape)), "coords": (_coords(coords), ("n", 4))},
        lambda dense, coords: op.from_dense(dense, coords, channels_last),
        {"channels_last": channels_last},
    )
    return as_kind(out, kind_of(dense))


def batch_offsets(coords, batch: int):
    """Offsets int32 [batch + 1] of the batch elements in coords int32 [N, 4]; see `op.batch_offsets`."""
    out = _run(
        "batch_offsets",
        {"coords": (_coords(coords), ("n", 4))},
        lambda coords: op.batch_offsets(coords, batch),
        {"batch": batch},
    )
    return as_kind(out, kind_of(coords))


def group_norm(x, offsets, weight, bias, groups: int, eps: float = 1e-5, activation: str = "none"):
    """Group norm over the voxels of each batch element: x [N, C], offsets int32 [B + 1] -> [N, C]; see `op.group_norm`."""
    tensor = _features(x)
    channels = tensor.shape[1]
    vectors = {
        name: (as_tensor(array, name, ("float32",), (channels,)), (channels,))
        for name, array in (("weight", weight), ("bias", bias))
    }
    segments = as_tensor(offsets, "offsets", ("int32",), (None,))
    out = _run(
        "group_norm",
        {"x": (tensor, ("n", channels)), "offsets": (segments, ("b",))} | vectors,
        lambda x, offsets, weight, bias: op.group_norm(x, offsets, weight, bias, groups, eps, activation),
        {"groups": groups, "eps": eps, "activation": activation},
    )
    return as_kind(out, kind_of(x))


def attention(q, k, v, q_offsets, k_offsets, scale: float | None = None, q_order=None, k_order=None):
    """Attention within segments: q [Nq, H, D], k, v [Nk, H, D], offsets int32 [B + 1] -> [Nq, H, D].

    q_order int32 [Nq], k_order int32 [Mk]: the rows that offsets count, as partitions give them; see `op.attention`.
    """
    queries = as_tensor(q, "q", FLOATS, (None, None, None))
    rows, heads, depth = queries.shape
    keys = as_tensor(k, "k", (str(queries.dtype),), (None, heads, depth))
    values = as_tensor(v, "v", (str(queries.dtype),), (keys.shape[0], heads, depth))
    starts = as_tensor(q_offsets, "q_offsets", ("int32",), (None,))
    tensors = {
        "q": (queries, ("n", heads, depth)),
        "k": (keys, ("m", heads, depth)),
        "v": (values, ("m", heads, depth)),
        "q_offsets": (starts, ("b",)),
        "k_offsets": (as_tensor(k_offsets, "k_offsets", ("int32",), (starts.shape[0],)), ("b",)),
    }
    if q_order is not None:
        tensors["q_order"] = (as_tensor(q_order, "q_order", ("int32",), (rows,)), ("n",))
    if k_order is not None:
        tensors["k_order"] = (as_tensor(k_order, "k_order", ("int32",), (None,)), ("picked",))
    out = _run("attention", tensors, lambda **t: op.attention(**t, scale=scale), {"scale": scale})
    return as_kind(out, kind_of(q))
