"""Layers on the same voxels share their index: it is built once, and the maps are those of separate functions."""

import numpy as np
import tvm
from tvm import relax

from sparse_ops.build import build
from sparse_ops.op import lookup, strided_map, submanifold_map
from sparse_ops.transform.share import ShareCalls
from tir_kernels.dispatch import PAIRS, host_target
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_table

STRIDED = Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1))


def maps_of(*makes):
    """A module of one function of coords [N, 4] that returns what each of `makes` makes of them."""
    bb = relax.BlockBuilder()
    coords = relax.Var("coords", relax.TensorType([tvm.tirx.Var("n", "int64"), 4], "int32"))
    with bb.function("main", [coords]):
        with bb.dataflow():
            result = bb.emit_output(relax.Tuple([bb.emit(make(coords)) for make in makes]))
        bb.emit_func_output(result)
    return bb.get()


def calls_of(mod, name):
    """Calls of kernels whose name begins with `name`."""
    bindings = [binding.value for block in mod["main"].body.blocks for binding in block.bindings]
    names = [v.args[0].name_hint for v in bindings if isinstance(v, relax.Call) and v.op.name == "relax.call_tir"]
    return sum(found.startswith(name) for found in names)


MAKES = (
    lambda coords: submanifold_map(coords, 3),
    lambda coords: submanifold_map(coords, 5, 2),
    lambda coords: strided_map(coords, 3, 2, 1),
    lambda coords: lookup(coords, coords),
)


def test_one_index_serves_all_maps():
    with host_target():
        legal = relax.transform.LegalizeOps()(maps_of(*MAKES))
        shared = ShareCalls()(legal)
    assert (calls_of(legal, "plan_index"), calls_of(legal, "build_index")) == (4, 4)
    assert (calls_of(shared, "plan_index"), calls_of(shared, "build_index")) == (1, 1)
    assert calls_of(shared, "submanifold_map") == 2


def test_indices_of_other_methods_and_voxels_stay():
    makes = (
        lambda coords: submanifold_map(coords, 3, method="grid"),
        lambda coords: submanifold_map(coords, 3, method="hash"),
        lambda coords: lookup(relax.op.add(coords, relax.const(1)), coords, "grid"),
    )
    with host_target():
        shared = ShareCalls()(relax.transform.LegalizeOps()(maps_of(*makes)))
    assert calls_of(shared, "build_index") == 3


def test_shared_maps_are_right():
    coords = np.unique(np.random.default_rng(0).integers(0, 9, (200, 4), dtype="int32"), axis=0)
    sub3, sub5, (out, strided), rows = build(maps_of(*MAKES))["main"](tvm.runtime.tensor(coords))
    near, wide = Geometry.submanifold((3, 3, 3)), Geometry.submanifold((5, 5, 5), (2, 2, 2))
    expected = naive_table(coords, coords, near), naive_table(coords, coords, wide), naive_table(coords, out.numpy(), STRIDED)
    for found, table in zip((sub3, sub5, strided), expected, strict=True):
        np.testing.assert_array_equal(PAIRS.unpack(*(array.numpy() for array in found)), table)
    np.testing.assert_array_equal(rows.numpy(), np.arange(len(coords)))
