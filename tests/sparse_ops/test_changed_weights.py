"""Weights that are written into after the first call: what is held counts, in arrays of all kinds."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import tvm

import sparse_ops
from sparse_ops import functional as F
from sparse_ops.eager.checksum import checksum
from tests.tolerance import assert_close

torch = pytest.importorskip("torch")
COORDS = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 2, 1], [1, 0, 0, 0], [1, 1, 1, 1]], "int32")
LAYERS = {
    "kernel 3": lambda: sparse_ops.SubMConv3d(4, 6, 3),
    "kernel 1": lambda: sparse_ops.SubMConv3d(4, 6, 1),
    "strided": lambda: sparse_ops.SparseConv3d(4, 6, 2, 2),
}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def voxels() -> sparse_ops.SparseTensor:
    return sparse_ops.SparseTensor(normal(0, len(COORDS), 4), COORDS, (4, 4, 4))


def held(array) -> np.ndarray:
    """A copy."""
    return (array.detach().numpy() if isinstance(array, torch.Tensor) else array).copy()


def fresh(layer) -> np.ndarray:
    """What a new layer with the same parameters returns."""
    other = copy.copy(layer)
    vars(other).pop("_kept", None)
    other.weight, other.bias = held(layer.weight), held(layer.bias)
    return np.asarray(other(voxels()).feats)


def follows(layer, *changes) -> None:
    """After each change the layer returns what a new one does, and something else than before."""
    before = np.asarray(layer(voxels()).feats)
    for change in changes:
        change()
        now = np.asarray(layer(voxels()).feats)
        assert now.tobytes() == fresh(layer).tobytes() != before.tobytes()
        before = now


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_numpy(make):
    layer = make()
    weight, bias = layer.weight, layer.bias
    last = weight.reshape(-1)[-1:]

    def swap():
        weight[[0, 1]] = weight[[1, 0]]

    def zero():
        weight[...] = 0

    follows(
        layer,
        swap,
        lambda: np.negative(weight, out=weight),
        lambda: np.multiply(last, 3, out=last),
        lambda: np.add(bias, 1, out=bias),
        lambda: np.negative(bias, out=bias),
        zero,
    )


def test_a_view_of_a_larger_array():
    everything = normal(1, 3, 6, 3, 3, 3, 4)
    layer = LAYERS["kernel 3"]()
    layer.weight = everything[1]

    def change():
        everything[1, 0, 0, 0, 0, 0] += 1

    follows(layer, change)
    before = layer(voxels()).feats
    everything[0] = 0  # of others
    np.testing.assert_array_equal(layer(voxels()).feats, before)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_torch(make):
    layer = make()
    weight = torch.nn.Parameter(torch.from_numpy(layer.weight.copy()))
    layer.weight, layer.bias = weight, torch.nn.Parameter(torch.from_numpy(layer.bias.copy()))
    optimizer = torch.optim.SGD([layer.weight, layer.bias], lr=0.1)
    weight.grad, layer.bias.grad = torch.ones_like(weight), torch.ones_like(layer.bias)

    def other_storage():
        weight.data = torch.randn_like(weight)

    def through_data():
        weight.data.reshape(-1)[0] += 1

    follows(
        layer,
        lambda: torch.nn.init.kaiming_normal_(weight),
        lambda: torch.nn.init.constant_(layer.bias, 2),
        optimizer.step,
        through_data,
        other_storage,
        lambda: weight.neg_(),
    )


def test_tvm():
    weight, x = tvm.runtime.tensor(normal(1, 3, 4)), normal(0, 5, 4)
    weights = sparse_ops.Weights(weight)
    for seed in (1, 2, 3):
        weight.copyfrom(normal(seed, 3, 4))
        assert_close(F.linear(x, weights), x.astype("float64") @ normal(seed, 3, 4).T.astype("float64"), 4, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_weights_of_functions(dtype):
    """Of an odd number of bytes, at an odd place; packed for two functions."""
    x, whole = normal(0, 5, 3).astype(dtype), normal(1, 16).astype(dtype)
    weight, bias = whole[1:].reshape(5, 3), normal(2, 5)
    weights = sparse_ops.Weights(weight, bias)
    for change in (lambda: None, lambda: np.negative(whole, out=whole), lambda: np.add(bias, 1, out=bias)):
        change()
        for activation in ("none", "relu"):
            expected = F.linear(x, weight.copy(), bias.copy(), activation=activation)
            assert F.linear(x, weights, activation=activation).tobytes() == expected.tobytes()


def test_other_arrays_in_their_place_count():
    x, weights = normal(0, 5, 4), sparse_ops.Weights(normal(1, 3, 4))
    F.linear(x, weights)
    weights.weight = normal(2, 3, 4)
    np.testing.assert_array_equal(F.linear(x, weights), F.linear(x, normal(2, 3, 4)))


def test_what_did_not_change_is_packed_once(monkeypatch):
    packed = []
    pack = sparse_ops.program.Function.pack
    monkeypatch.setattr(sparse_ops.program.Function, "pack", lambda self, read: packed.append(self) or pack(self, read))
    layer, weights = LAYERS["kernel 1"](), sparse_ops.Weights(normal(1, 3, 4))
    for _ in range(3):
        layer(voxels())
        F.linear(normal(0, 5, 4), weights)
    assert len(packed) == 2
    layer.weight[0] += 1
    layer(voxels())
    layer(voxels())
    assert len(packed) == 3


def test_what_is_packed_does_not_travel():
    weights = sparse_ops.Weights(normal(1, 3, 4), normal(2, 3))
    x = normal(0, 5, 4)
    expected = F.linear(x, weights)
    for other in (copy.copy(weights), copy.deepcopy(weights), pickle.loads(pickle.dumps(weights))):
        np.testing.assert_array_equal(F.linear(x, other), expected)


def test_writing_while_other_threads_compute():
    """Whatever they read meanwhile, afterwards what is held counts."""
    layer, x = LAYERS["kernel 3"](), voxels()
    layer(x)
    with ThreadPoolExecutor(3) as executor:
        running = [executor.submit(lambda: [layer(x) for _ in range(50)]) for _ in range(3)]
        while not all(future.done() for future in running):
            layer.weight += 1
        for future in running:
            future.result()
    assert np.asarray(layer(x).feats).tobytes() == fresh(layer).tobytes()


def test_the_checksum_takes_any_shape():
    array = normal(0, 3, 2, 5)
    same = [checksum(tvm.runtime.tensor(array.reshape(shape)), "float32") for shape in ((3, 2, 5), (30,), (1, 30))]
    assert len(set(same)) == 1
