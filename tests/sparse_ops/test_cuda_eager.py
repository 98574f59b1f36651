"""Sparse tensors, layers and kernel maps on the emulated CUDA device and on the CPU in turn: neither takes the other's maps."""

import copy
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import tvm

import sparse_ops
from sparse_ops.eager import functional as F
from sparse_ops.eager.checksum import checksum
from tests.cuda_device import cuda_target, device
from tests.tolerance import assert_close

rng = np.random.default_rng(5)
SHAPE = (7, 6, 5)
COORDS = np.ascontiguousarray(np.argwhere(rng.random((1, *SHAPE)) < 0.3), "int32")
FEATS = rng.standard_normal((len(COORDS), 8)).astype("float32")
WEIGHT = rng.standard_normal((8, 3, 3, 3, 8)).astype("float32")
SCOPES = {"cpu": nullcontext, "cuda": cuda_target}
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@pytest.fixture(autouse=True)
def emulated():
    device()


def there(array):
    """The array in the memory of the device."""
    return tvm.runtime.tensor(array, device())


def tensor(feats=FEATS, coords=COORDS):
    return sparse_ops.SparseTensor(feats, coords, spatial_shape=SHAPE)


def numbers(array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.numpy()


@pytest.fixture(scope="module")
def layers():
    down = sparse_ops.SparseConv3d(8, 8, 3, 2, 1, indice_key="down")
    return sparse_ops.SubMConv3d(8, 8, 3, indice_key="same"), down, sparse_ops.SparseInverseConv3d(8, 8, 3, indice_key="down")


def run(layers, x):
    for layer in layers:
        x = layer(x)
    return x


@pytest.mark.parametrize("feats,coords", [(FEATS, COORDS), (there, there), (there, COORDS), (FEATS, there)])
def test_layers_run_where_features_or_coordinates_lie(layers, feats, coords):
    expected = run(layers, tensor()).feats
    x = tensor(*(array if isinstance(array, np.ndarray) else array(of) for array, of in ((feats, FEATS), (coords, COORDS))))
    out = run(layers, x).feats
    assert type(out) is type(x.feats) and getattr(out, "device", None) == getattr(x.feats, "device", None)
    assert_close(numbers(out), expected, 3 * 27 * 8)


@pytest.mark.parametrize("order", [("cpu", "cuda", "cpu"), ("cuda", "cpu", "cuda")])
def test_one_tensor_in_turn_for_both_targets(layers, order):
    expected, x = run(layers, tensor()).feats, tensor()
    for scope in order:
        with SCOPES[scope]():
            assert_close(run(layers, x).feats, expected, 3 * 27 * 8)


@pytest.mark.parametrize("first,then", [("cpu", "cuda"), ("cuda", "cpu")])
def test_an_inverse_layer_takes_the_map_that_the_other_target_left(layers, first, then):
    expected, x = run(layers, tensor()).feats, tensor()
    with SCOPES[first]():
        x = run(layers[:2], x)
    with SCOPES[then]():
        assert_close(layers[2](x).feats, expected, 3 * 27 * 8)


def test_a_map_of_the_other_target_is_refused():
    of_cpu = F.submanifold_map(COORDS, 3)
    of_device = F.submanifold_map(there(COORDS), 3)
    assert (of_cpu.made_for, of_device.made_for) == ("cpu", "cuda") and of_cpu.num_pairs == of_device.num_pairs
    words = "kernel_map: expected one that was built for a CUDA device, where this call runs, given one for a CPU"
    for scope, x in ((cuda_target, FEATS), (nullcontext, there(FEATS))):
        with scope():
            for call in (
                lambda x=x: F.sparse_conv(x, WEIGHT, of_cpu),
                lambda x=x: F.pool(x, of_cpu),
            ):
                with pytest.raises(ValueError, match=words):
                    call()
    on_host = copy.copy(of_device)  # as a pickle comes back on a machine without the device
    on_host.coords_in = on_host.coords_out = tvm.runtime.tensor(COORDS)
    on_host.arrays = tuple(array.copyto(tvm.cpu()) for array in of_device.arrays)
    for call in (lambda: F.sparse_conv(FEATS, WEIGHT, on_host), lambda: F.inverse_map(on_host), lambda: on_host.num_pairs):
        with pytest.raises(ValueError, match="built for a CPU, where this call runs, given one for a CUDA device"):
            call()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_lie_where_the_originals_lie(copied, layers):
    expected = F.sparse_conv(FEATS, WEIGHT, F.submanifold_map(COORDS, 3))
    kernel_map = copied(F.submanifold_map(there(COORDS), 3))
    assert all(array.device == device() for array in (kernel_map.coords_in, *kernel_map.arrays))
    assert_close(F.sparse_conv(FEATS, WEIGHT, kernel_map), expected, 27 * 8)
    x = copied(layers[0](tensor(there(FEATS), there(COORDS))))
    assert x.feats.device == x.coords.device == device()
    assert_close(numbers(layers[0](x).feats), run([layers[0]] * 2, tensor()).feats, 2 * 27 * 8)


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_an_index_is_one_for_each_target(method):
    queries = np.ascontiguousarray(np.concatenate([COORDS[7:2:-1], COORDS[:1] + 30]), "int32")
    expected, index = F.lookup(COORDS, queries, method), F.CoordinateIndex()
    for _ in range(2):
        for coords, wanted in ((COORDS, queries), (COORDS, there(queries)), (there(COORDS), queries)):
            np.testing.assert_array_equal(numbers(F.lookup(coords, wanted, method, index=index)), expected)
    assert len(index._built) == 2


def test_sums_and_columns_lie_where_the_first_tensor_lies():
    x, y = tensor(there(FEATS), there(COORDS)), tensor()
    for made, expected in (
        (x + y, FEATS * 2),
        (sparse_ops.cat(x, y), np.concatenate([FEATS, FEATS], 1)),
        (sparse_ops.sparse_add(x, y), FEATS * 2),
        (sparse_ops.sparse_cat(x, y), np.concatenate([FEATS, FEATS], 1)),
    ):
        assert made.feats.device == device()
        np.testing.assert_array_equal(made.feats.numpy(), expected)  # the rows of COORDS ascend
    assert isinstance((y + x).feats, np.ndarray)


def test_extents_are_given_to_a_device():
    dense = tensor(there(FEATS), there(COORDS)).dense()
    assert dense.device == device()
    np.testing.assert_array_equal(dense.numpy(), tensor().dense())


def test_weights_on_the_device_beside_others_and_changed_in_place():
    weight, kernel_map = there(WEIGHT), F.submanifold_map(there(COORDS), 3)
    weights, of_cpu = F.Weights(weight, np.zeros(8, "float32")), F.submanifold_map(COORDS, 3)
    assert checksum(weight, "float32") == checksum(tvm.runtime.tensor(WEIGHT), "float32")
    for factor in (1, 2):
        weight.copyfrom(WEIGHT * factor)
        assert_close(F.sparse_conv(FEATS, weights, kernel_map), F.sparse_conv(FEATS, WEIGHT * factor, of_cpu), 27 * 8)
    weights.bias = there(np.ones(8, "float32"))  # both on the device: read as they are
    ones = F.sparse_conv(FEATS, WEIGHT * 2, of_cpu, np.ones(8, "float32"))
    assert_close(F.sparse_conv(FEATS, weights, kernel_map), ones, 27 * 8)
