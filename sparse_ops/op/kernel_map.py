"""Kernel maps: `R.sparse_ops.submanifold_map`, `strided_map` and `inverse_map`.

A map is a tuple of four tensors (pair_in, pair_out, segment, rows), built once per coordinate set and geometry and used by
every layer on it. Its law, for every tap: coordinate_in = stride * coordinate_out + dilation * k - padding.
"""

from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.coordinate_index import PLAN_SIZE
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap
from tir_kernels.spec.sites import CopySites, FindSites, PlanSites

from .index import (
    GEOMETRY,
    MAP_TYPE,
    check_method,
    check_taps,
    dimensions,
    emit_index,
    emit_shape,
    emit_sizes,
    emit_tuple,
    geometry_of,
    geometry_options,
    int32,
    int32_of_rank,
    int64,
    map_fields,
    map_shapes,
    triple,
)
from .memory import Of, emit_grant, granted_call
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates, extents
from .signature import kernel_map as map_argument

SUBMANIFOLD = Signature("submanifold_map", (coordinates(),), options=(*GEOMETRY, "method"))
EXTENTS = ("size_x", "size_y", "size_z")
STRIDED = Signature(
    "strided_map", (coordinates(), extents("shape", *EXTENTS, optional=True)), options=(*GEOMETRY, "infer", "method")
)
INVERSE = Signature("inverse_map", (map_argument("n", "m"), coordinates("coords", "n")))

MAP, MAP_AND_TABLE = 2, 3  # int32 that each pair of a tap and an output row takes: in a map, and in the table beside it


def submanifold_map(coords: relax.Expr, kernel_size=3, dilation=1, method: str = "auto") -> relax.Call:
    """The map of a submanifold convolution: output sites are the input sites, in their order.

    coords int32 [N, 4] as (batch, x, y, z), no row twice, batch 0 to 4095 and x, y, z -32768 to 32767; kernel_size odd and
    dilation at least 1, ints or three along x, y, z. The padding is (kernel_size // 2) * dilation and the stride 1.
    method: "grid" (dense, for a bounding box of at most 2^28 cells), "hash", or "auto" to choose by the size of the box; all
    give the same bits. Returns a kernel map of N input and N output rows.

    Raises ValueError for other shapes and dtypes, for an even kernel, and, from the running module, for the first row that
    repeats another or lies outside of the range, and for a box too large for the grid that was asked for.
    """
    kernel = triple("submanifold_map", "kernel_size", kernel_size, 1)
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"sparse_ops.submanifold_map: kernel_size: expected odd sizes, given {kernel_size!r}")
    check_method("submanifold_map", method)
    check_taps("submanifold_map", kernel)
    geometry = Geometry.submanifold(kernel, triple("submanifold_map", "dilation", dilation, 1))
    return _submanifold(coords=coords, **geometry_options(geometry), method=method)


def _infer_submanifold(bound: Bound) -> relax.TupleType:
    return MAP_TYPE


def _legalize_submanifold(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    geometry = geometry_of(bound.options)
    index = emit_index(bb, bound["coords"], geometry.reach, bound.options["method"])
    kernel, rows = kernel_for(SubmanifoldMap(geometry)), bound.dims["n"]
    granted = emit_grant(bb, "submanifold_map", ("int32", [MAP_AND_TABLE, geometry.taps, Of(bound["coords"])]))
    shapes = map_shapes(kernel.map, geometry.taps, rows)
    return granted_call(bb, kernel.function, [bound["coords"], *index], granted, shapes)


_submanifold = register_op(SUBMANIFOLD, _legalize_submanifold, _infer_submanifold)


def strided_map(
    coords: relax.Expr,
    kernel_size,
    stride=1,
    padding=0,
    dilation=1,
    shape="infer",
    transposed: bool = False,
    method: str = "auto",
) -> relax.Call:
    """Output sites and map of a strided (or, with `transposed`, a transposed) sparse convolution.

    coords as in `submanifold_map`; kernel_size, stride, dilation at least 1, padding at least 0: ints or three along
    x, y, z. A site is active when any tap meets an active input. `shape` is the extent of the input grid, an int or
    three of at least 1 or symbolic dimensions, which bounds the sites as in spconv: floor((n + 2p - d(k - 1) - 1) / s) + 1, or
    (n - 1) s - 2p + k transposed; "infer" takes one more than the largest coordinate along each axis, as SAM-3D-Objects does;
    None bounds nothing and allows negative coordinates.

    Returns (coords int32 [M, 4], kernel map), with M known only at run time: `match_cast` the coordinates to name it.
    Sites are grouped by batch element, ascending, and within one in order of first touch: taps outside (last axis fastest),
    input rows inside, which is spconv's order on a CPU.

    Raises ValueError for other shapes, dtypes and geometries, and, from the running module, for the first row that repeats
    another or lies outside of `shape` or of the range, and for sites and pairs that do not fit into memory.
    """
    name = "strided_map"
    geometry = Geometry(
        triple(name, "kernel_size", kernel_size, 1),
        triple(name, "stride", stride, 1),
        triple(name, "padding", padding, 0),
        triple(name, "dilation", dilation, 1),
        transposed,
    )
    check_method(name, method)
    check_taps(name, geometry.kernel)
    if isinstance(shape, str) and shape != "infer":
        raise ValueError(f"sparse_ops.{name}: shape: expected three ints, 'infer' or None, given {shape!r}")
    given = None if shape is None or isinstance(shape, str) else dimensions(name, "shape", shape, 1)
    return _strided(coords=coords, shape=given, **geometry_options(geometry), infer=isinstance(shape, str), method=method)


def _infer_strided(bound: Bound) -> relax.TupleType:
    return relax.TupleType([int32_of_rank(2), MAP_TYPE])


def _legalize_strided(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    coords, geometry, method = bound["coords"], geometry_of(bound.options), bound.options["method"]
    bounds, given = "infer" if bound.options["infer"] else None, []
    if bound.has("shape"):
        bounds, given = "given", bound.shape(EXTENTS)
    planned = call_spec(bb, PlanSites(geometry, bounds, method), [coords, *given], [int64(PLAN_SIZE), int64(3)])
    plan, size = emit_tuple(bb, planned, 2)
    slots, keys, most = emit_sizes(bb, size, 3)
    found = call_spec(bb, FindSites(geometry), [coords, plan], [int32(slots), int64(keys), int32(most, 4), int64(1)])
    _, _, sites, count = emit_tuple(bb, found, 4)
    (rows,) = emit_sizes(bb, count, 1)
    out_coords = bb.emit(call_spec(bb, CopySites(), [sites, plan], int32(rows, 4)))
    index = emit_index(bb, coords, (0, 0, 0), method)
    kernel = kernel_for(ProbeMap(geometry))
    granted = emit_grant(bb, "strided_map", ("int32", [MAP, geometry.taps, Of(out_coords)]))
    shapes = map_shapes(kernel.map, geometry.taps, rows)
    kernel_map = granted_call(bb, kernel.function, [out_coords, *index], granted, shapes)
    return relax.Tuple([out_coords, bb.emit(kernel_map)])


_strided = register_op(STRIDED, _legalize_strided, _infer_strided)


def inverse_map(kernel_map: relax.Expr, coords: relax.Expr) -> relax.Call:
    """The map of the inverse convolution: the triples (input, output, tap) of `kernel_map` with input and output exchanged.

    coords int32 [N, 4]: the coordinates that `kernel_map` reads from, whose rows the inverse convolution restores. The tap
    is not mirrored; a row that fed no output gets nothing but the bias.

    Raises ValueError when an argument is no map or no coordinates, or, from the running module, when they do not belong
    together.
    """
    return _inverse(kernel_map=kernel_map, coords=coords)


def _infer_inverse(bound: Bound) -> relax.TupleType:
    return MAP_TYPE


def _legalize_inverse(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    *fields, rows = map_fields(bb, bound["kernel_map"])
    _, columns = emit_shape(bb, fields[2])
    kernel = kernel_for(InverseMap())
    granted = emit_grant(bb, "inverse_map", ("int32", [MAP_AND_TABLE, Of(fields[2], 1), Of(bound["coords"])]))
    shapes = map_shapes(kernel.map, columns - 1, bound.dims["n"])
    return granted_call(bb, kernel.function, [*fields, rows, bound["coords"]], granted, shapes)


_inverse = register_op(INVERSE, _legalize_inverse, _infer_inverse)
