"""Eager face, points: clouds become sparse tensors, and features of voxels come back to points."""

from tir_kernels.spec.pool import SEGMENT_MODES

from ..op.quantize import check_inverse_alone
from ..op.register import check_choice
from ..op.signature import FLOATS
from . import functional
from .arrays import as_kind, as_tensor, describe, kind_of
from .tensor import MAX_DIMENSIONS, SparseTensor

WAYS = ("trilinear", "nearest")


def voxelize(points, feats, voxel_size, batch_index=None, mode: str = "mean", origin=None, batch_size: int | None = None):
    """Points in voxels: (SparseTensor, inverse int32 [P]).

    points float32 [P, 3], of any sign; feats float32, bfloat16 or float16 [P, C]; voxel_size a number or three; batch_index
    int32 [P], 0 if not given; origin a number or three, 0 if not given. The voxel of a point is floor((point - origin) /
    voxel_size), see `op.quantize`; its features are the "mean", "sum" or "max" of those of its points, or those of the "first".
    Voxels ascend in (batch, x, y, z); inverse[i] is the row of the voxel that point i lies in, of the kind of the points.

    Raises ValueError naming the argument that does not fit, and for the first point that is not finite or out of range.
    """
    check_choice("voxelize", "mode", mode, SEGMENT_MODES)
    places = as_tensor(points, "points", ("float32",), (None, 3))
    rows = as_tensor(feats, "feats", FLOATS, (None, None)).shape[0]
    if rows != places.shape[0]:
        raise ValueError(f"feats: expected {places.shape[0]} rows, one for each point, given {rows}")
    coords, inverse = functional.unique(functional.quantize(places, voxel_size, batch_index, origin))
    pooled = functional.segment_pool(feats, inverse, coords.shape[0], mode)
    return SparseTensor(pooled, coords, batch_size=batch_size), as_kind(inverse, kind_of(points))


def devoxelize(
    x: SparseTensor, points, voxel_size=None, batch_index=None, mode: str = "trilinear", origin=None, stride=1, normalize=True
):
    """Features of voxels at points: [P, C], dtype and kind of the features of x.

    points float32 [P, 3] with voxel_size, batch_index and origin as in `voxelize`, and the stride of x against its voxels: an
    int or three, the product of all factors of downsampling. mode "trilinear": between the eight voxels around a point, see
    `op.trilinear`; "nearest": the voxel that the point lies in. Where there is no voxel, 0.

    Or the inverse int32 [P] of `voxelize` in place of the points, and nothing else: the voxel of each point.
    Raises ValueError naming the argument that does not fit.
    """
    check_choice("devoxelize", "mode", mode, WAYS)
    if not isinstance(x, SparseTensor):
        raise ValueError(f"x: expected a SparseTensor, given {describe(x)}")
    if len(getattr(points, "shape", ())) == 1:
        check_inverse_alone(voxel_size, batch_index, origin, stride)
        return functional.gather_rows(x.feats, points)
    if x.coordinates.dimensions != MAX_DIMENSIONS:
        raise ValueError(f"x: expected {MAX_DIMENSIONS} axes beside the batch index, given {x.coordinates.dimensions}")
    coords, rows, places = x.coordinates.coords, x.coordinates.index, as_tensor(points, "points", ("float32",), (None, 3))
    if mode == "nearest":
        voxels = functional.quantize(places, voxel_size, batch_index, origin, stride)
        return functional.gather_rows(x.feats, functional.lookup(coords, voxels, index=rows))
    index, weight = functional.trilinear(coords, places, voxel_size, batch_index, origin, stride, normalize, index=rows)
    return functional.interpolate(x.feats, index, weight)
