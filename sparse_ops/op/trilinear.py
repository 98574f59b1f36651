"""From voxels to points: `R.sparse_ops.trilinear`, which voxels and how much of each, and `R.sparse_ops.interpolate`."""

from tvm import relax

from tir_kernels.spec.interpolate import Interpolate
from tir_kernels.spec.trilinear import CORNERS, Trilinear

from .index import check_method, index_of, int32, returned, with_index
from .numbers import check_flag
from .quantize import GRID, grid_arguments, grid_inputs
from .register import call_spec, register_op
from .signature import Argument, Bound, Kind, Signature, coordinates, features, parameter

TRILINEAR = Signature("trilinear", (coordinates(), *GRID), options=("stride", "normalize", "method"), indexed="coords")
INTERPOLATE = Signature(
    "interpolate",
    (
        features("x", "n", "channels"),
        Argument("index", Kind.INDEX, ("p", "terms"), ("int32",)),
        parameter("weight", "p", "terms"),
    ),
    known=("channels", "terms"),
    result=("p", "channels"),
)


def trilinear(
    coords: relax.Expr,
    points: relax.Expr,
    voxel_size,
    batch_index: relax.Expr | None = None,
    origin=None,
    stride=1,
    normalize: bool = True,
    method: str = "auto",
) -> relax.Call:
    """The eight voxels around each point, and their trilinear weights, in spvcnn's form: values stand at integer coordinates.

    coords int32 [N, 4], no row twice; the others as in `quantize`, which says what the position of a point is. Around position
    p stand the voxels floor(p) + d, d from (0, 0, 0) to (1, 1, 1) with z fastest; weights are products of 1 - |p - voxel|, and
    0 for voxels that are not there. With `normalize` they are divided by their sum + 1e-8. For values at the centres of voxels,
    move the origin by half a voxel. method as in `lookup`.

    Returns (index int32 [P, 8], -1 for a voxel that is not there, weight float32 [P, 8]), as `interpolate` takes them.
    Raises ValueError as `quantize` and `lookup`.
    """
    check_method("trilinear", method)
    grid = grid_arguments("trilinear", voxel_size, batch_index, origin, stride)
    normalize = check_flag("trilinear", "normalize", normalize)
    return _trilinear(coords=coords, points=points, **grid, normalize=normalize, method=method)


def interpolate(x: relax.Expr, index: relax.Expr, weight: relax.Expr) -> relax.Call:
    """Weighted sums of rows: out[i] = sum over j of weight[i, j] * x[index[i, j]], without those whose index is -1.

    x float32, bfloat16 or float16 [N, C]; index int32 [P, K], entries -1 to N - 1; weight float32 [P, K], K known at compile
    time. Returns dtype of x, [P, C]; sums are float32, in the order of j, and 0 where there is nothing to sum.

    Raises ValueError naming the argument whose dtype or shape does not fit and, from the running module, for the first
    entry of the index that is out of range.
    """
    return _interpolate(x=x, index=index, weight=weight)


def _infer_trilinear(bound: Bound) -> relax.TupleType:
    return returned(bound, relax.TupleType(_corners(bound)))


def _corners(bound: Bound) -> list[relax.TensorType]:
    points = bound.dims["p"]
    return [int32(points, CORNERS), relax.TensorType((points, CORNERS), "float32")]


def _legalize_trilinear(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    options = bound.options
    index = index_of(bb, bound)
    spec = Trilinear(options["stride"], bool(options["normalize"]), bound.has("batch_index"))
    return with_index(bb, bound, call_spec(bb, spec, [*grid_inputs(bound), *index], _corners(bound)), index)


def _legalize_interpolate(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = Interpolate(bound.dims["channels"], bound.dims["terms"], bound.dtype)
    return call_spec(bb, spec, bound.call.args, bound.type)


_trilinear = register_op(TRILINEAR, _legalize_trilinear, _infer_trilinear)
_interpolate = register_op(INTERPOLATE, _legalize_interpolate)
