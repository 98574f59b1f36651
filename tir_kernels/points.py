"""The voxels of points, as TIR expressions for any target; see `spec.quantize`."""

from tvm.script import tirx as T

from .spec.coordinate_index import COORDINATE_LIMIT
from .vector_math import bind

BEYOND = 40000.0  # what no coordinate reaches, and is an int32 and has a key in an index
INFINITY = 0x7F800000  # the bits of infinity; those of NaN are larger


def position(points, row, axis: int, voxel_size, origin):
    """The float32 position of a point along an axis, in units of voxels."""
    return (points[row, axis] - origin[axis]) / voxel_size[axis]


def floor(value):
    """floor of a bound float32 as int32; what is NaN or out of the range of coordinates stays out of that range.

    A cast, and one less where it rounded up: not every CPU has an instruction for the floor.
    """
    near = bind(T.max(T.min(value, T.float32(BEYOND)), T.float32(-BEYOND)))  # of NaN, either
    whole = bind(T.Cast("int32", near))
    return whole - T.Cast("int32", T.Cast("float32", whole) > near)


def is_beyond(cell):
    """Whether a voxel is out of the range of coordinates along an axis."""
    return T.Or(cell < -COORDINATE_LIMIT, cell >= COORDINATE_LIMIT)


def grid_numbers(voxel_size, origin) -> list[tuple]:
    """The voxel size, which is above 0 and finite, and the origin, which is finite: (argument, axis, value, whether it is not).

    Told from the bits: TVM turns `not a < b` into `a >= b`, which NaN passes.
    """
    numbers = []
    for axis in range(3):
        size, start = (T.reinterpret("int32", of_all[axis]) for of_all in (voxel_size, origin))
        numbers.append(("voxel_size", axis, voxel_size[axis], T.Or(size <= 0, size >= INFINITY)))
        numbers.append(("origin", axis, origin[axis], T.bitwise_and(start, T.int32(0x7FFFFFFF)) >= INFINITY))
    return numbers
