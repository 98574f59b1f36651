"""From points to sites and back, in a graph."""

from tvm.relax.frontend import nn

from tir_kernels.spec.pool import SEGMENT_MODES

from .. import op
from ..op.register import check_choice
from .carrier import Rows, Sites, SymbolicSparseTensor, cast_shape, check_sparse, dimension, emit, emit_fields

WAYS = ("trilinear", "nearest")


def voxelize(
    points: nn.Tensor,
    feats: nn.Tensor,
    voxel_size,
    batch_index: nn.Tensor | None = None,
    mode: str = "mean",
    origin=None,
    batch: Rows = 1,
) -> tuple[SymbolicSparseTensor, nn.Tensor]:
    """Points in voxels: features on M sites, known at run time and ascending, and the row of each point there, int32 [P].

    points float32 [P, 3], feats float32, bfloat16 or float16 [P, C], batch_index int32 [P] of `batch` elements, 0 if not given;
    voxel_size and origin a number or three, or a tensor float32 [3], which may differ from run to run. The voxel of a point is
    floor((point - origin) / voxel_size), see `op.quantize`; its features are the "mean", "sum" or "max" of those of its points,
    or those of the "first". ValueError if an argument does not fit.
    """
    check_choice("nn.voxelize", "mode", mode, SEGMENT_MODES)
    _check_tensors("voxelize", points=points, feats=feats)
    voxels = emit(op.quantize(points._expr, *map(_expr, (voxel_size, batch_index, origin))), "voxels")
    coords, inverse = emit_fields(op.unique(voxels._expr))
    sites = Sites(cast_shape(coords, (dimension("rows"), 4)), batch)
    pooled = emit(op.segment_pool(feats._expr, inverse, sites.coords._expr, mode), "pooled")
    return SymbolicSparseTensor(pooled, sites), nn.Tensor(_expr=inverse)


def devoxelize(
    x: SymbolicSparseTensor,
    points: nn.Tensor,
    voxel_size=None,
    batch_index: nn.Tensor | None = None,
    mode: str = "trilinear",
    origin=None,
    stride=1,
    normalize: bool = True,
) -> nn.Tensor:
    """Features of voxels at points: [P, C], dtype of x; 0 where there is no voxel.

    points float32 [P, 3] with voxel_size, batch_index and origin as in `voxelize`, and the stride of x against its voxels: the
    product of all factors of downsampling. mode "trilinear": between the eight voxels around a point, see `op.trilinear`;
    "nearest": the voxel that the point lies in. Or the inverse int32 [P] of `voxelize` in place of the points, and nothing
    else: the voxel of each point. ValueError if an argument does not fit.
    """
    check_choice("nn.devoxelize", "mode", mode, WAYS)
    check_sparse("devoxelize", x)
    _check_tensors("devoxelize", points=points)
    if points.ndim == 1:
        if voxel_size is not None:
            raise ValueError(f"devoxelize: voxel_size: expected None with the inverse of voxelize, given {voxel_size!r}")
        return emit(op.gather_rows(x.feats._expr, points._expr), "devoxelized")
    coords, grid = x.coords._expr, [points._expr, *map(_expr, (voxel_size, batch_index, origin))]
    if mode == "nearest":
        voxels = emit(op.quantize(*grid, stride), "voxels")
        rows = emit(op.lookup(coords, voxels._expr), "voxel")
        return emit(op.gather_rows(x.feats._expr, rows._expr), "devoxelized")
    index, weight = emit_fields(op.trilinear(coords, *grid, stride, normalize))
    return emit(op.interpolate(x.feats._expr, index, weight), "devoxelized")


def _expr(value):
    """The expression of a tensor; numbers and None as they are."""
    return value._expr if isinstance(value, nn.Tensor) else value


def _check_tensors(owner: str, **tensors) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, nn.Tensor):
            raise ValueError(f"{owner}: {name}: expected a tensor, given {tensor!r}")
