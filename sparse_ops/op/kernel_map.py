"""Kernel maps: `R.sparse_ops.submanifold_map`, `strided_map`, `kernel_map` and `inverse_map`.

A map is a tuple of four tensors (pair_in, pair_out, segment, rows), built once per coordinate set and geometry and used by
every layer on it. Its law, for every tap: coordinate_in = stride * coordinate_out + dilation * k - padding.
"""

from dataclasses import replace

import tvm
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.coordinate_index import PLAN_SIZE
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap
from tir_kernels.spec.sites import CopySites, FindSites, PlanSites

from .index import (
    GEOMETRY,
    MAP_TYPE,
    check_ceil_mode,
    check_method,
    check_taps,
    dimensions,
    emit_index,
    emit_shape,
    emit_sizes,
    emit_tuple,
    fitting_extent,
    geometry_of,
    geometry_options,
    index_of,
    int32,
    int32_of_rank,
    int64,
    map_fields,
    map_shapes,
    output_padding_of,
    returned,
    triple,
    with_index,
)
from .memory import Of, emit_grant, granted_call
from .numbers import check_flag
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates, extents
from .signature import kernel_map as map_argument

SUBMANIFOLD = Signature("submanifold_map", (coordinates(),), options=(*GEOMETRY, "method"), indexed="coords")
EXTENTS = ("size_x", "size_y", "size_z")
STRIDED = Signature(
    "strided_map",
    (coordinates(), extents("shape", *EXTENTS, optional=True)),
    options=(*GEOMETRY, "output_padding", "ceil_mode", "infer", "method"),
    indexed="coords",
)
CHOSEN = Signature(
    "kernel_map",
    (coordinates("coords_in", "n"), coordinates("coords_out", "m")),
    options=(*GEOMETRY, "method"),
    indexed="coords_in",
)
INVERSE = Signature("inverse_map", (map_argument("n", "m"), coordinates("coords", "n")))

MAP = 2  # int32 that each pair of a tap and an output row takes in a map
MAP_AND_TABLE = 3  # and in an inverse map, which is made by way of a table


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
    return returned(bound, MAP_TYPE)


def _legalize_submanifold(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    geometry = geometry_of(bound.options)
    index = index_of(bb, bound)
    kernel, rows = kernel_for(SubmanifoldMap(geometry)), bound.dims["n"]
    granted = emit_grant(bb, "submanifold_map", ("int32", [MAP, geometry.taps, Of(bound["coords"])]))
    shapes = map_shapes(kernel.map, geometry.taps, rows)
    return with_index(bb, bound, granted_call(bb, kernel.function, [bound["coords"], *index], granted, shapes), index)


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
    *,
    output_padding=0,
    ceil_mode: bool = False,
) -> relax.Call:
    """Output sites and map of a strided (or, with `transposed`, a transposed) sparse convolution.

    coords as in `submanifold_map`; kernel_size, stride, dilation at least 1, padding at least 0: ints or three along
    x, y, z. A site is active when any tap meets an active input. `shape` is the extent of the input grid, an int or
    three of at least 1 or symbolic dimensions, which bounds the sites as in spconv: floor((n + 2p - d(k - 1) - 1) / s) + 1, or
    (n - 1) s - 2p + k transposed; "infer" takes one more than the largest coordinate along each axis, as SAM-3D-Objects does;
    None bounds nothing and allows negative coordinates. `output_padding` (transposed only): layers that the output grid has
    more at the end of x, y, z, below the larger of stride and dilation. `ceil_mode` (not transposed): round the quotient up,
    unless the last window would start behind the input, as PyTorch's pooling does.

    Returns (coords int32 [M, 4], kernel map), with M known only at run time: `match_cast` the coordinates to name it.
    Sites are grouped by batch element, ascending, and within one in order of first touch: taps outside (last axis fastest),
    input rows inside, which is spconv's order on a CPU.

    Raises ValueError for other shapes, dtypes and geometries, and, from the running module, for the first row that repeats
    another or lies outside of `shape` or of the range, and for sites and pairs that do not fit into memory.
    """
    name = "strided_map"
    geometry = _geometry(name, kernel_size, stride, padding, dilation, transposed)
    output_padding = output_padding_of(name, output_padding, geometry.stride, geometry.dilation, transposed)
    ceil_mode = check_ceil_mode(name, ceil_mode, geometry.transposed)
    check_method(name, method)
    check_taps(name, geometry.kernel)
    if isinstance(shape, str) and shape != "infer":
        raise ValueError(f"sparse_ops.{name}: shape: expected three ints, 'infer' or None, given {shape!r}")
    given = None if shape is None or isinstance(shape, str) else dimensions(name, "shape", shape, 1)
    if given is not None and all(isinstance(n, tvm.tirx.IntImm) for n in given.values):
        bounded = replace(geometry, output_padding=output_padding, ceil_mode=ceil_mode)
        fitting_extent(f"sparse_ops.{name}: ", tuple(map(int, given.values)), bounded)
    options = geometry_options(geometry) | {"output_padding": output_padding, "ceil_mode": ceil_mode}
    return _strided(coords=coords, shape=given, **options, infer=isinstance(shape, str), method=method)


def _geometry(name: str, kernel_size, stride, padding, dilation, transposed: bool) -> Geometry:
    return Geometry(
        triple(name, "kernel_size", kernel_size, 1),
        triple(name, "stride", stride, 1),
        triple(name, "padding", padding, 0),
        triple(name, "dilation", dilation, 1),
        check_flag(name, "transposed", transposed),
    )


def _infer_strided(bound: Bound) -> relax.TupleType:
    return returned(bound, relax.TupleType([int32_of_rank(2), MAP_TYPE]))


def _legalize_strided(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    coords, geometry, method = bound["coords"], geometry_of(bound.options), bound.options["method"]
    bounds, given = "infer" if bound.options["infer"] else None, []
    if bound.has("shape"):
        bounds, given = "given", bound.shape(EXTENTS)
    bounded = replace(geometry, output_padding=bound.options["output_padding"], ceil_mode=bound.options["ceil_mode"])
    planned = call_spec(bb, PlanSites(bounded, bounds, method), [coords, *given], [int64(PLAN_SIZE), int64(3)])
    plan, size = emit_tuple(bb, planned, 2)
    slots, keys, most = emit_sizes(bb, size, 3)
    found = call_spec(bb, FindSites(geometry), [coords, plan], [int32(slots), int64(keys), int32(most, 4), int64(1)])
    _, _, sites, count = emit_tuple(bb, found, 4)
    (rows,) = emit_sizes(bb, count, 1)
    out_coords = bb.emit(call_spec(bb, CopySites(), [sites, plan], int32(rows, 4)))
    index = index_of(bb, bound)
    kernel = kernel_for(ProbeMap(geometry))
    granted = emit_grant(bb, "strided_map", ("int32", [MAP, geometry.taps, Of(out_coords)]))
    shapes = map_shapes(kernel.map, geometry.taps, rows)
    kernel_map = granted_call(bb, kernel.function, [out_coords, *index], granted, shapes)
    return with_index(bb, bound, relax.Tuple([out_coords, bb.emit(kernel_map)]), index)


_strided = register_op(STRIDED, _legalize_strided, _infer_strided)


def kernel_map(
    coords_in: relax.Expr,
    coords_out: relax.Expr,
    kernel_size,
    stride=1,
    padding=0,
    dilation=1,
    transposed: bool = False,
    method: str = "auto",
) -> relax.Call:
    """The kernel map between two given coordinate sets: a convolution onto output sites that the caller chose.

    coords_in int32 [N, 4] and coords_out int32 [M, 4], each as in `submanifold_map`; kernel_size, stride, padding, dilation,
    transposed as in `strided_map`, whose output sites would give its map: an even or an odd kernel, of which nothing is centred
    that no padding centres (kernel_size // 2 * dilation does). An output site that no tap leads to an input from keeps its row,
    which gets nothing but the bias. `method` chooses how input rows are found, all give the same bits. Returns a kernel map of
    N input and M output rows.

    Raises ValueError for other shapes, dtypes and geometries, and, from the running module, for the first row of either set
    that repeats another of it or is out of range.
    """
    geometry = _geometry("kernel_map", kernel_size, stride, padding, dilation, transposed)
    check_method("kernel_map", method)
    check_taps("kernel_map", geometry.kernel)
    return _chosen(coords_in=coords_in, coords_out=coords_out, **geometry_options(geometry), method=method)


def _infer_chosen(bound: Bound) -> relax.TupleType:
    return returned(bound, MAP_TYPE)


def _legalize_chosen(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    geometry, coords_out = geometry_of(bound.options), bound["coords_out"]
    index = index_of(bb, bound)
    _, slots, _ = emit_index(bb, coords_out, "auto", "coords_out")  # finds rows that repeat another
    kernel = kernel_for(ProbeMap(geometry, chosen=True))
    granted = emit_grant(bb, "kernel_map", ("int32", [MAP, geometry.taps, Of(coords_out)]))
    shapes = map_shapes(kernel.map, geometry.taps, bound.dims["m"])
    return with_index(bb, bound, granted_call(bb, kernel.function, [coords_out, *index, slots], granted, shapes), index)


_chosen = register_op(CHOSEN, _legalize_chosen, _infer_chosen)


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
