"""Shared by the ops on coordinates: attributes, and the steps that build an index with sizes known only at run time."""

import itertools
from collections.abc import Mapping
from math import prod

import tvm
from tvm import relax

from tir_kernels.layout import MapLayout
from tir_kernels.spec.coordinate_index import METHODS, PLAN_SIZE, BuildIndex, PlanIndex
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.sites import out_extent

from .numbers import MOST_SIZE, MOST_STEP, as_axes, check_flag, check_int, check_most, shown
from .register import call_spec, check_choice
from .signature import INDEX, INDEX_TYPES, MAP_DTYPES, RETURNS_INDEX, Bound

_fresh = itertools.count()
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "transposed")  # options of a call


def int64(*shape) -> relax.TensorType:
    return relax.TensorType(shape, "int64")


def int32(*shape) -> relax.TensorType:
    return relax.TensorType(shape, "int32")


def int32_of_rank(ndim: int) -> relax.TensorType:
    """A tensor whose rows only the data will tell."""
    return relax.TensorType(dtype="int32", ndim=ndim)


def triple(op: str, argument: str, value, least: int, most: int = MOST_STEP) -> tuple[int, int, int]:
    """An int or three of them, each from `least` to `most`, as a tuple along x, y, z; ValueError otherwise."""
    return several(op, argument, value, least, most, 3)


def several(op: str, argument: str, value, least: int, most: int, count: int) -> tuple[int, ...]:
    """As `triple`, for another count of axes."""
    axes = as_axes(value, count)
    if axes is None or min(axes) < least:
        words = f"an int or {('one', 'two', 'three')[count - 1]} of at least {least}"
        raise ValueError(f"sparse_ops.{op}: {argument}: expected {words}, given {shown(value)}")
    check_most(f"sparse_ops.{op}: {argument}", value, axes, most)
    return axes


def fitting_extent(where: str, shape: tuple[int, int, int], geometry: Geometry, dimensions: int = 3) -> tuple[int, ...]:
    """The output grid along the last axes of a grid of `shape`, whose first axes are 1 where it has fewer dimensions.

    ValueError if the kernel is larger than the padded grid, so that there is none; `where` begins its words.
    """
    extent = out_extent(shape, geometry)
    if min(extent) < 1:
        axes = (geometry.kernel, geometry.padding, geometry.dilation, shape)
        kernel, padding, dilation, grid = (list(values[3 - dimensions :]) for values in axes)
        raise ValueError(
            f"{where}kernel_size: expected a kernel that the padded grid has room for, given {kernel} with padding {padding} "
            f"and dilation {dilation} on a grid of {grid}"
        )
    return extent[3 - dimensions :]


def dimensions(op: str, argument: str, value, least: int, count: int = 3) -> relax.ShapeExpr:
    """An int, or `count` of them, each at least `least`, or symbolic dimensions in their place, as a shape.

    A shape of `count` dimensions is returned as it is. Raises ValueError otherwise.
    """
    if isinstance(value, relax.ShapeExpr) and len(value.values) == count:
        return value
    if count == 1:
        axes = [value if isinstance(value, tvm.ir.Expr) else check_int(op, argument, value, least)]
    elif isinstance(value, tvm.ir.Expr):
        axes = [value] * count
    elif isinstance(value, list | tuple) and any(isinstance(axis, tvm.ir.Expr) for axis in value):
        plain = tuple(least if isinstance(axis, tvm.ir.Expr) else axis for axis in value)
        numbers = several(op, argument, plain, least, MOST_SIZE, count)
        axes = [axis if isinstance(axis, tvm.ir.Expr) else n for axis, n in zip(value, numbers, strict=True)]
    else:
        axes = several(op, argument, value, least, MOST_SIZE, count)
    return relax.ShapeExpr([axis if isinstance(axis, tvm.ir.Expr) else tvm.tirx.IntImm("int64", axis) for axis in axes])


def check_taps(op: str, kernel: tuple[int, int, int]) -> None:
    """ValueError for a kernel of more taps than maps have room for."""
    if prod(kernel) > MapLayout.MOST_TAPS:
        raise ValueError(f"sparse_ops.{op}: kernel_size: expected at most {MapLayout.MOST_TAPS} taps, given {kernel!r}")


def geometry_options(geometry: Geometry) -> dict:
    """A geometry as options of a call."""
    axes = (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, geometry.transposed)
    return dict(zip(GEOMETRY, axes, strict=True))


def geometry_of(options: Mapping) -> Geometry:
    """The geometry that `geometry_options` wrote."""
    return Geometry(*(options[name] for name in GEOMETRY))


def output_padding_of(op: str, value, stride, dilation, transposed: bool = True) -> tuple[int, int, int]:
    """An output padding as a tuple along x, y, z.

    ValueError unless it is 0 where a convolution is not transposed, and elsewhere below the stride or the dilation along its
    axis, as in PyTorch: more would add nothing but empty layers.
    """
    axes = triple(op, "output_padding", value, 0)
    if any(axes) and not transposed:
        raise ValueError(f"sparse_ops.{op}: output_padding: expected 0 unless the map is transposed, given {value!r}")
    most = tuple(max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
    if any(axis > limit for axis, limit in zip(axes, most, strict=True)):
        raise ValueError(
            f"sparse_ops.{op}: output_padding: expected at most {most}, which is below the larger of stride and dilation, "
            f"given {value!r}"
        )
    return axes


def check_ceil_mode(op: str, ceil_mode: bool, transposed: bool = False) -> bool:
    """`ceil_mode` as a bool; ValueError unless it is one, and False where a map is transposed."""
    ceil_mode = check_flag(op, "ceil_mode", ceil_mode)
    if ceil_mode and transposed:
        raise ValueError(f"sparse_ops.{op}: ceil_mode: expected False where the map is transposed, given True")
    return ceil_mode


def check_method(op: str, method: str, methods=METHODS):
    check_choice(op, "method", method, methods)


def emit_sizes(bb: relax.BlockBuilder, size: relax.Expr, count: int) -> list[tvm.tirx.Var]:
    """Fresh symbolic dimensions equal to the entries of an int64 [count] tensor."""
    shape = bb.emit(relax.op.tensor_to_shape(size))
    dims = [tvm.tirx.Var(f"size_{next(_fresh)}", "int64") for _ in range(count)]
    bb.match_cast(shape, relax.ShapeType(dims))
    return dims


def emit_shape(bb: relax.BlockBuilder, tensor: relax.Expr) -> list[tvm.tirx.Var]:
    """Fresh symbolic dimensions equal to the shape of a tensor that has none yet."""
    dims = [tvm.tirx.Var(f"size_{next(_fresh)}", "int64") for _ in range(tensor.ty.ndim)]
    bb.match_cast(bb.emit(relax.op.shape_of(tensor)), relax.ShapeType(dims))
    return dims


def emit_tuple(bb: relax.BlockBuilder, call: relax.Call, count: int) -> list[relax.Expr]:
    """The elements of a call that returns a tuple."""
    result = bb.emit(call)
    return [bb.emit(relax.TupleGetItem(result, i)) for i in range(count)]


def emit_index(bb: relax.BlockBuilder, coords: relax.Expr, method: str, argument: str = "coords") -> list[relax.Expr]:
    """Plan and build the index of `coords`, which messages call `argument`: (plan, slots, keys)."""
    plan_of = PlanIndex(method, argument=argument)
    plan, size = emit_tuple(bb, call_spec(bb, plan_of, [coords], [int64(PLAN_SIZE), int64(2)]), 2)
    slots, keys = emit_sizes(bb, size, 2)
    return [plan, *emit_tuple(bb, call_spec(bb, BuildIndex(argument), [coords, plan], [int32(slots), int64(keys)]), 2)]


def index_of(bb: relax.BlockBuilder, bound: Bound) -> list[relax.Expr]:
    """The index of the coordinates that a call looks up rows of: the one that it was given, or a new one."""
    if bound.has(INDEX[0].name):
        return [bound[argument.name] for argument in INDEX]
    coords = bound.signature.indexed
    return emit_index(bb, bound[coords], bound.options["method"], coords)


def returned(bound: Bound, result: relax.Type) -> relax.Type:
    """The type of a call whose result has the type `result`: with the index behind it where it is asked for."""
    return relax.TupleType([result, *INDEX_TYPES]) if bound.options.get(RETURNS_INDEX) else result


def with_index(bb: relax.BlockBuilder, bound: Bound, result: relax.Expr, index: list[relax.Expr]) -> relax.Expr:
    """The result of a call, with the index behind it where it is asked for."""
    return relax.Tuple([bb.emit(result), *index]) if bound.options.get(RETURNS_INDEX) else result


MAP_TYPE = relax.TupleType(
    [relax.TensorType(dtype=dtype, ndim=ndim) for dtype, ndim in zip(MAP_DTYPES.values(), MapLayout.RANKS, strict=True)]
)


def map_shapes(layout: MapLayout, taps, rows) -> list[relax.TensorType]:
    """The types of the four tensors of a kernel map of `rows` output rows."""
    return [relax.TensorType(array.shape, array.dtype) for array in layout.arrays(taps, rows)]


def map_fields(bb: relax.BlockBuilder, kernel_map: relax.Expr) -> list[relax.Expr]:
    """The four tensors of a kernel map."""
    return [bb.emit(relax.TupleGetItem(kernel_map, i)) for i in range(4)]
