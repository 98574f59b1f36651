"""Eager maps and look-ups of the same voxels share one index, and compute what each of them does with its own."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sparse_ops.eager import functional
from sparse_ops.eager.functional import CoordinateIndex
from sparse_ops.eager.layers import SparseConv3d, SparseConvTranspose3d, SubMConv3d
from sparse_ops.eager.points import devoxelize
from sparse_ops.eager.tensor import SparseTensor
from sparse_ops.eager.voxels import intersection
from tests.sparse_ops.indices import indices_built
from tests.sparse_ops.walk import with_threads
from tir_kernels.dispatch import PAIRS

ROWS = 300


def cloud(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Distinct voxels in any order: int32 [rows, 4]."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(2 * 16**3, rows, replace=False)
    return np.stack(np.unravel_index(flat, (2, 16, 16, 16)), 1).astype("int32")


def tables(kernel_map) -> list[np.ndarray]:
    return [PAIRS.unpack(*(array.numpy() for array in kernel_map.arrays)), kernel_map.coords_out.numpy()]


POINTS = np.random.default_rng(1).uniform(-2, 18, (40, 3)).astype("float32")
CALLS = {
    "submanifold_map": lambda coords, **index: tables(functional.submanifold_map(coords, 3, **index)),
    "strided_map": lambda coords, **index: tables(functional.strided_map(coords, 3, 2, 1, shape=16, **index)),
    "transposed_map": lambda coords, **index: tables(functional.strided_map(coords, 2, 2, shape=16, transposed=True, **index)),
    "kernel_map": lambda coords, **index: tables(functional.kernel_map(coords, cloud(50, 2), 3, 1, 1, **index)),
    "lookup": lambda coords, **index: [functional.lookup(coords, cloud(50, 2), **index)],
    "trilinear": lambda coords, **index: list(functional.trilinear(coords, POINTS, 1.0, **index)),
}


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rows", [0, 1, ROWS])
@pytest.mark.parametrize("first", CALLS)
def test_every_call_takes_what_any_other_left(first, rows):
    coords, index = cloud(rows), CoordinateIndex()
    expected = {name: call(coords) for name, call in CALLS.items()}
    assert_equal(CALLS[first](coords, index=index), expected[first])
    for call in CALLS.values():
        call(coords, index=index)  # compiles it
    with indices_built() as built:
        for name, call in CALLS.items():
            assert_equal(call(coords, index=index), expected[name])
    assert built.sets == [cloud(50, 2).tobytes()]  # the output voxels of `kernel_map`


@pytest.mark.parametrize("first", CALLS)
def test_the_first_call_says_what_it_says_alone(first):
    """And leaves nothing behind."""
    twice = np.concatenate([cloud(), cloud()[:1]])
    outside = cloud()
    outside[7, 2] = 40000
    for coords in (twice, outside):
        with pytest.raises(ValueError) as alone:
            CALLS[first](coords)
        index = CoordinateIndex()
        for _ in range(2):
            with pytest.raises(ValueError) as shared:
                CALLS[first](coords, index=index)
            assert str(shared.value) == str(alone.value)


def test_an_index_of_other_rows_is_refused():
    index = CoordinateIndex()
    functional.submanifold_map(cloud(), index=index)
    for _ in range(2):
        with pytest.raises(ValueError, match="index: expected that of 20 coordinates, as given, given that of 300"):
            functional.lookup(cloud(20), cloud(), index=index)


def test_methods_have_indices_of_their_own():
    coords, index = cloud(), CoordinateIndex()
    for method in ("grid", "hash", "auto"):
        found = functional.submanifold_map(coords, method=method, index=index)
        assert_equal(tables(found), tables(functional.submanifold_map(coords)))


def layers():
    rng = np.random.default_rng(3)
    made = (
        SubMConv3d(4, 4, 3),
        SubMConv3d(4, 4, 5),
        SparseConv3d(4, 4, 3, 2, 1),
        SparseConvTranspose3d(4, 4, 2, 2),
        SubMConv3d(4, 4, 3),
    )
    for layer in made:
        layer.weight = rng.standard_normal(layer.weight.shape).astype("float32")
    return made


LAYERS = layers()
FEATS = np.random.default_rng(4).standard_normal((ROWS, 4)).astype("float32")


def network(x: SparseTensor) -> list[np.ndarray]:
    """Features of all layers on the voxels of x, of one behind the strided one, of points and of voxels in common."""
    near, wide, strided, transposed, behind = LAYERS
    down = strided(x)
    results = [near(x), wide(x), down, transposed(x), behind(down), intersection(down, x)]
    return [result.feats for result in results] + [devoxelize(x, POINTS, 1.0), devoxelize(x, POINTS, 1.0, mode="nearest")]


def test_layers_build_one_index_for_each_set_of_voxels():
    expected = network(SparseTensor(FEATS, cloud(), 16, 2))
    with indices_built() as built:
        x = SparseTensor(FEATS, cloud(), 16, 2)
        assert_equal(network(x), expected)
    assert (len(built.sets), len(set(built.sets)), built.maps) == (2, 2, 5)
    with indices_built() as built:
        SparseTensor(FEATS, cloud(), 16, 2)
        network(x)
    assert built.sets == []


def test_threads_share_it():
    x, expected = SparseTensor(FEATS, cloud(), 16, 2), network(SparseTensor(FEATS, cloud(), 16, 2))
    with ThreadPoolExecutor(4) as executor:
        for found in executor.map(lambda _: network(x), range(8)):
            assert_equal(found, expected)
    for count in (1, 2):
        assert_equal(with_threads(count, lambda: network(SparseTensor(FEATS, cloud(), 16, 2))), expected)


def test_copies_build_their_own_and_memory_goes_with_the_tensor():
    x = SparseTensor(FEATS, cloud(), 16, 2)
    expected = network(x)
    assert x.coordinates.index.arrays("auto")
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert not other.coordinates.index.arrays("auto")
        assert_equal(network(other), expected)
    kept = weakref.ref(x.coordinates.index)
    del x
    gc.collect()
    assert kept() is None
