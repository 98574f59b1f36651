"""Voxels of points, `R.sparse_ops.quantize`, and the numbers that lay a grid over space."""

import numpy as np
from tvm import relax

from tir_kernels.spec.quantize import Quantize

from .index import int32, triple
from .numbers import as_int, shown
from .register import call_spec, register_op
from .signature import Bound, Signature, index, parameter

GRID = (  # arguments that say where points lie
    parameter("points", "p", 3),
    parameter("voxel_size", 3),
    index("batch_index", "p", optional=True),
    parameter("origin", 3, optional=True),
)
SIGNATURE = Signature("quantize", GRID, options=("stride",))


def quantize(points: relax.Expr, voxel_size, batch_index: relax.Expr | None = None, origin=None, stride=1) -> relax.Call:
    """The voxel that each point lies in: (batch, floor(floor((points - origin) / voxel_size) / stride)).

    points float32 [P, 3], of any sign; voxel_size a number or three above 0, or a tensor float32 [3], which may change from
    run to run; batch_index int32 [P], 0 if not given; origin three numbers or a tensor float32 [3], 0 if not given; stride an
    int or three of at least 1, of voxels that were downsampled. Returns int32 [P, 4]: the same voxels as numpy's in float32,
    bit for bit, and those of `downsample` by the stride.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first point that is not
    finite or out of range (batch 0 to 4095, voxels -32768 to 32767), and a tensor of voxel sizes that are not above 0.
    """
    return _quantize(points=points, **grid_arguments("quantize", voxel_size, batch_index, origin, stride))


def grid_arguments(op: str, voxel_size, batch_index, origin, stride) -> dict:
    """What `GRID` has beside the points: tensors, of numbers where numbers were given, and the stride."""
    if not isinstance(voxel_size, relax.Expr):
        voxel_size = relax.const(voxel_sizes(op, voxel_size))
    if origin is not None and not isinstance(origin, relax.Expr):
        origin = relax.const(origins(op, origin))
    stride = triple(op, "stride", stride, 1)
    return {"voxel_size": voxel_size, "batch_index": batch_index, "origin": origin, "stride": stride}


def check_inverse_alone(voxel_size, batch_index, origin, stride) -> None:
    """ValueError for what devoxelisation does not read where it is given the voxel of each point."""
    given = {
        "voxel_size": (voxel_size, None),
        "batch_index": (batch_index, None),
        "origin": (origin, None),
        "stride": (stride, 1),
    }
    for name, (value, default) in given.items():
        if value is not default and (default is None or as_int(value) != default):
            raise ValueError(f"devoxelize: {name}: expected {default} with the inverse of voxelize, given {shown(value)}")


def voxel_sizes(op: str, value) -> np.ndarray:
    """A number or three, above 0 and finite in float32, as float32 [3]; ValueError otherwise."""
    sizes = _three(value)
    if sizes is None or not (sizes > 0).all():
        raise ValueError(f"sparse_ops.{op}: voxel_size: expected a number or three above 0, given {value!r}")
    return sizes


def origins(op: str, value) -> np.ndarray:
    """A number or three, finite in float32, as float32 [3]; ValueError otherwise."""
    origin = _three(value)
    if origin is None:
        raise ValueError(f"sparse_ops.{op}: origin: expected a number or three, given {value!r}")
    return origin


def _three(value) -> np.ndarray | None:
    """float32 [3] of a number or three that are finite; None of anything else."""
    try:
        wide = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    if wide.dtype.kind not in "iuf" or wide.shape not in ((), (3,)):
        return None
    with np.errstate(over="ignore"):
        three = np.ascontiguousarray(np.broadcast_to(wide, 3), "float32")
    return three if np.isfinite(three).all() else None


def grid_inputs(bound: Bound) -> list[relax.Expr]:
    """The points and what follows them, as the kernels take them."""
    origin = bound["origin"] if bound.has("origin") else relax.const(np.zeros(3, "float32"))
    index = [bound["batch_index"]] if bound.has("batch_index") else []
    return [bound["points"], bound["voxel_size"], *index, origin]


def _infer(bound: Bound) -> relax.TensorType:
    return int32(bound.dims["p"], 4)


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    return call_spec(bb, Quantize(bound.options["stride"], bound.has("batch_index")), grid_inputs(bound), bound.type)


_quantize = register_op(SIGNATURE, _legalize, _infer)
