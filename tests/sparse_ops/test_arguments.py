"""Arguments of eager calls, graph modules and ops: integers of any kind, spconv's order, and what does not fit is named."""

import inspect
import re

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

import sparse_ops
from sparse_ops import SparseTensor, nn, op
from sparse_ops import functional as F
from sparse_ops.op.index import triple
from sparse_ops.op.numbers import as_axes, as_int, check_int

torch = pytest.importorskip("torch")
COORDS = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 2, 1], [1, 0, 0, 0], [1, 1, 1, 1]], "int32")
TWICE = np.ascontiguousarray(COORDS[[0, 1, 2, 3, 3]])
NO_INTEGERS = [3.0, np.float32(3), True, np.bool_(True), None, "3", "333", np.array([3.0] * 3), torch.ones(3)]
NO_INTEGERS += [[3, 3], [3, 3, 3.0], {3: 3}]
INTEGERS = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)]
TRIPLES = [*INTEGERS, [3, 3, 3], (3, np.int32(3), 3), np.array([3, 3, 3]), torch.tensor([3, 3, 3]), torch.Size([3, 3, 3])]


def feats(channels=4):
    return np.random.default_rng(0).standard_normal((len(COORDS), channels)).astype("float32")


def tensor(channels=4):
    return SparseTensor(feats(channels), COORDS, (4, 4, 4), 2)


@pytest.mark.parametrize("value", TRIPLES, ids=repr)
def test_integers_of_any_kind(value):
    for axes in (as_axes(value, 3), triple("op", "factor", value, 1)):
        assert axes == (3, 3, 3) and all(type(axis) is int for axis in axes)
    if as_int(value) is not None:
        assert type(as_int(value)) is int and check_int("op", "batch", value, 1) == 3


# Where an integer, or one for each axis, is taken: eager layers and functions, graph modules, ops.
C = relax.Var("coords", relax.TensorType([tvm.tirx.Var("n", "int64"), 4], "int32"))
AXES = {
    "kernel_size": lambda value: sparse_ops.SubMConv3d(4, 4, value),
    "kernel_size of nn": lambda value: nn.SparseConv3d(4, 4, value),
    "kernel_size of op": lambda value: op.submanifold_map(C, value),
    "kernel_size of F": lambda value: F.submanifold_map(COORDS, value),
    "stride": lambda value: sparse_ops.SparseConv3d(4, 4, 3, value),
    "stride of a pool": lambda value: sparse_ops.SparseMaxPool3d(3, (3.5,) if value is None else value),
    "padding": lambda value: sparse_ops.SparseConvTranspose3d(4, 4, 3, 2, value),
    "dilation": lambda value: nn.SparseMaxPool3d(3, dilation=value),
    "factor": lambda value: F.downsample(COORDS, value),
    "factor of nn": lambda value: nn.Downsample(value),
    "spatial_shape": lambda value: SparseTensor(feats(), np.minimum(COORDS, 1), (4.5,) if value is None else value),
    "shape": lambda value: F.to_dense(feats()[:2], COORDS[:2], 1, value),
    "shape of op": lambda value: op.strided_map(C, 3, shape=(4.5,) if value is None else value),
    "shape of nn": lambda value: nn.ToDense(value),
    "window": lambda value: F.window_partition(COORDS, value),
}
COUNTS = {
    "in_channels": lambda value: sparse_ops.SubMConv3d(value, 4, 3),
    "out_channels": lambda value: sparse_ops.SparseInverseConv3d(4, value, 3, "key"),
    "in_features of nn": lambda value: nn.Linear(value, 4),
    "out_channels of nn": lambda value: nn.SubMConv3d(4, value, 3),
    "channels of nn": lambda value: nn.LayerNorm(value),
    "batch_size": lambda value: SparseTensor(feats(), COORDS, None, 4.5 if value is None else value),
    "batch": lambda value: F.batch_offsets(COORDS, value),
    "batch of op": lambda value: op.batch_offsets(C, value),
    "rows": lambda value: F.segment_pool(feats(), np.array([0, 1, 2, 0, 1], "int32"), value),
    "count_bias": lambda value: F.segment_pool(feats(), np.array([0, 1, 2, 0, 1], "int32"), 3, count_bias=value),
    "window": lambda value: F.serialized_partition(COORDS, value),
    "count": lambda value: sparse_ops.set_threads(value),
}


@pytest.mark.parametrize("name", AXES)
def test_axes_are_integers(name):
    for value in TRIPLES:
        AXES[name](value)
    for value in NO_INTEGERS:
        with pytest.raises(ValueError, match=rf"{name.split()[0]}: expected"):
            AXES[name](value)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_integers(name):
    if name != "count":
        for value in INTEGERS:
            COUNTS[name](value)
    for value in [value for value in NO_INTEGERS if not isinstance(value, list | dict)]:
        with pytest.raises(ValueError, match=rf"{name.split()[0]}: expected"):
            COUNTS[name](value)


def test_an_integer_of_numpy_is_the_same_option():
    """Nothing is compiled a second time, and the state has plain sizes."""
    from sparse_ops.eager import cache

    F.segment_pool(feats(), np.zeros(5, "int32"), 1, "mean", 2)
    before = len(cache._compiled)
    F.segment_pool(feats(), np.zeros(5, "int32"), 1, "mean", np.int64(2))
    assert len(cache._compiled) == before
    layer = sparse_ops.SubMConv3d(np.int64(4), np.int32(5), np.int64(3))
    assert layer.weight_shape == (5, 3, 3, 3, 4) and all(type(n) is int for n in layer.weight_shape)
    assert SparseTensor(feats(), COORDS, np.int64(4)).spatial_shape == (4, 4, 4)
    assert type(SparseTensor(feats(), COORDS, None, np.int64(2)).batch_size) is int


# As in spconv 2.3, whose names and order of arguments these are.
BEGIN = ["in_channels", "out_channels", "kernel_size"]
MIDDLE = ["stride", "padding", "dilation", "groups", "bias", "indice_key", "algo", "fp32_accum"]
ORDER = {
    "SubMConv": [*BEGIN, *MIDDLE, "large_kernel_fast_algo", "name"],
    "SparseConv": [*BEGIN, *MIDDLE, "record_voxel_count", "large_kernel_fast_algo", "name"],
    "SparseConvTranspose": [*BEGIN, *MIDDLE, "record_voxel_count", "large_kernel_fast_algo", "name"],
    "SparseInverseConv": [*BEGIN, "indice_key", "bias", "algo", "fp32_accum", "large_kernel_fast_algo", "name"],
    "SparseMaxPool": ["kernel_size", *MIDDLE[:3], "indice_key", "algo", "record_voxel_count", "name"],
    "SparseAvgPool": ["kernel_size", *MIDDLE[:3], "indice_key", "algo", "record_voxel_count", "name"],
}


def positional(function) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", ORDER)
def test_arguments_have_spconvs_order(name):
    for ndim in (1, 2, 3):
        assert positional(getattr(sparse_ops, f"{name}{ndim}d")) == ORDER[name]
    module = getattr(nn, f"{name}3d")
    given = positional(module)
    assert given == ORDER[name][: len(given)], "behind what is alike, arguments of nn go by name only"


def test_arguments_of_tensors_have_spconvs_order():
    assert positional(SparseTensor)[2:] == ["spatial_shape", "batch_size"]
    assert positional(SparseTensor.dense)[1:] == ["channels_first"] == positional(sparse_ops.ToDense)
    assert positional(nn.ToDense) == ["shape", "channels_first"]
    x = tensor()
    sparse_ops.SubMConv3d(4, 4, 3, 1, 0, 1, 1, True, "key", None, True, False, "name")(x)
    y = SparseTensor(x.feats, COORDS, (4, 4, 4), 2, indice_dict=x.indice_dict)
    assert y.find_indice_pair("key") is x.indice_dict["key"] and y.find_indice_pair("other") is None
    assert y.shadow_copy() is not y and vars(y.shadow_copy()) == vars(y)


def test_numpy_and_torch_mix_in_sums():
    a, b = tensor(), tensor()
    b = b.replace_feature(torch.from_numpy(b.feats))
    for first, second, kind in ((a, b, np.ndarray), (b, a, torch.Tensor)):
        for total in (first + second, sparse_ops.sparse_add(first, second)):
            assert isinstance(total.feats, kind)
    np.testing.assert_array_equal((a + b).feats, 2 * a.feats)


def test_voxels_are_looked_at_once(monkeypatch):
    """That no row repeats another is found out once for each set of voxels, and is known of what an op made."""
    from sparse_ops.eager import tensor as module

    looked, lookup = [], F.lookup
    monkeypatch.setattr(module.functional, "lookup", lambda *args, **more: looked.append(args) or lookup(*args, **more))
    x, point = tensor(), sparse_ops.SubMConv3d(4, 4, 1)
    point(point(x))
    sparse_ops.sparse_add(x, x.replace_feature(x.feats))
    assert len(looked) == 1
    mapped = tensor()
    point(sparse_ops.SubMConv3d(4, 4, 3)(mapped))
    point(sparse_ops.SparseMaxPool3d(2)(tensor()))
    point(sparse_ops.sparse_add(x, x))
    assert len(looked) == 1


LAYER, POINT = sparse_ops.SubMConv3d(4, 4, 3), sparse_ops.SubMConv3d(4, 4, 1)
MAP = F.submanifold_map(COORDS)
FITS = r"kernel_size: expected a kernel that the padded grid has room for, given "


def layer_of(**state):
    layer = sparse_ops.SubMConv3d(4, 4, 3)
    vars(layer).update(state)
    return layer


def folded_of(place, **state):
    network = sparse_ops.SparseSequential(sparse_ops.SubMConv3d(4, 4, 3), sparse_ops.BatchNorm1d(4))
    vars(network[place]).update(state)
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sparse_ops.sparse_add(), "tensors: expected at least one SparseTensor, given none"),
        (lambda: sparse_ops.sparse_add([]), "tensors: expected at least one SparseTensor, given none"),
        (lambda: sparse_ops.sparse_add(tensor(), None), r"tensors\[1\]: expected a SparseTensor, given NoneType None"),
        (lambda: sparse_ops.sparse_add([tensor(), feats()]), r"tensors\[1\]: expected a SparseTensor, given float32 \[5, 4\]"),
        (lambda: sparse_ops.sparse_add(SparseTensor(feats(), TWICE)), "coords: row 4 repeats the coordinates of row 3"),
        (lambda: POINT(SparseTensor(feats(), TWICE)), "coords: row 4 repeats the coordinates of row 3"),
        (lambda: LAYER(tensor(8)), "input: expected 4 channels, given 8"),
        (lambda: POINT(tensor(8)), "input: expected 4 channels, given 8"),
        (lambda: F.linear(feats(8), np.ones((3, 4), "float32")), r"x: expected 4 channels, as weight \[3, 4\] takes, given 8"),
        (
            lambda: F.sparse_conv(feats(8), LAYER.weight, MAP),
            r"x: expected 4 channels, as weight \[4, 3, 3, 3, 4\] takes",
        ),
        (
            lambda: F.linear(feats().astype("float64"), np.ones((3, 4))),
            r"x: .* given float64 .*: pass x.astype\('float32'\)",
        ),
        (
            lambda: F.linear(torch.ones(5, 4).double(), np.ones((3, 4))),
            r"x: .* float64 .*: pass x.float\(\)",
        ),
        (
            lambda: SparseTensor(feats(), COORDS.astype("int64")),
            r"coords: .* given int64 .*: pass coords.astype\('int32'\)",
        ),
        (lambda: SparseTensor(feats(), COORDS, 3), "coords: row 2 has x 3, expected 0 to 2"),
        (lambda: SparseTensor(feats(), COORDS, (4, 4, 0)), "spatial_shape: expected 3 extents from 1 to 32768, or an int"),
        (lambda: SparseTensor(feats(), COORDS, batch_size=2.0), "batch_size: expected an int from 1 to 4096, given 2.0"),
        (lambda: SparseTensor(feats(), COORDS, batch_size=5000), "batch_size: expected an int from 1 to 4096, given 5000"),
        (
            lambda: sparse_ops.SparseConv3d(4, 4, 5, 2)(tensor()),
            FITS + r"\[5, 5, 5\] with padding \[0, 0, 0\] and .* \[4, 4, 4\]",
        ),
        (lambda: sparse_ops.SparseMaxPool3d((1, 5, 1))(tensor()), FITS + r"\[1, 5, 1\] with padding"),
        (lambda: sparse_ops.SparseConv3d(4, 4, 3, dilation=2)(tensor()), FITS + r"\[3, 3, 3\] .* dilation \[2, 2, 2\]"),
        (lambda: sparse_ops.SparseConvTranspose3d(4, 4, 1, 2, 4)(tensor()), FITS + r"\[1, 1, 1\] with padding \[4, 4, 4\]"),
        (
            lambda: sparse_ops.SparseMaxPool3d(5)(SparseTensor(feats(), COORDS)),
            FITS + r"\[5, 5, 5\] .* on a grid of \[4, 3, 2\]",
        ),
        (
            lambda: sparse_ops.SparseMaxPool1d(3)(SparseTensor(feats()[:1], np.array([[0, 1]], "int32"), 2)),
            FITS + r"\[3\] with padding \[0\] and dilation \[1\] on a grid of \[2\]",
        ),
        (lambda: F.strided_map(COORDS, 5, shape=(4, 4, 4)), FITS + r"\[5, 5, 5\]"),
        (lambda: op.strided_map(C, 5, shape=4), "sparse_ops.strided_map: " + FITS),
        (
            lambda: layer_of(weight=LAYER.weight.astype("float64"))(tensor()),
            "weight: .* given float64 .*: pass weight.astype",
        ),
        (lambda: layer_of(weight=None)(tensor()), r"weight: expected shape \[4, 3, 3, 3, 4\], given NoneType None"),
        (lambda: layer_of(weight=[1.0])(tensor()), r"weight: expected shape \[4, 3, 3, 3, 4\], given list \[1.0\]"),
        (lambda: folded_of(0, weight=[1.0])(tensor()), r"weight: expected .* given list \[1.0\]: neither a numpy array nor"),
        (lambda: folded_of(0, bias=[1.0])(tensor()), r"bias: expected float32 \[4\], given list \[1.0\]: neither a numpy"),
        (lambda: folded_of(1, running_mean=[1.0])(tensor()), r"running_mean: expected .* given list \[1.0\]: neither a numpy"),
        (
            lambda: F.linear(feats(), F.Weights(np.ones((3, 4), "float32")), np.ones(3, "float32")),
            r"bias: expected None beside Weights, which hold one, given float32 \[3\]",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("value", [(1 << 20) + 1, 1 << 31, 10**20, (1, 1, 10**20)], ids=str)
def test_steps_beyond_any_grid_are_refused(value):
    """Before they are compiled: that of 2^31 took hours, and no integer of TVM holds 10^20."""
    for name in sorted(AXES.keys() - {"spatial_shape", "shape", "shape of op", "shape of nn"}):
        with pytest.raises(ValueError, match=rf"{name.split()[0]}: expected at most 1048576, given {re.escape(repr(value))}"):
            AXES[name](value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.to_dense(feats(), COORDS, 2, 10**20),
        lambda: F.to_dense(feats(), COORDS, 10**20, 4),
        lambda: F.segment_pool(feats(), np.zeros(5, "int32"), 10**20),
        lambda: F.batch_offsets(COORDS, 10**20),
        lambda: F.serialize(COORDS, shift=10**20),
        lambda: F.serialized_partition(COORDS, 10**20),
        lambda: op.to_dense(relax.Var("x", relax.TensorType([5, 4], "float32")), C, 1, 10**20),
    ],
)
def test_sizes_beyond_int64_are_refused(call):
    with pytest.raises(ValueError, match=rf"(shape|batch|rows|shift|window): expected at most {(1 << 63) - 1}, given {10**20}"):
        call()


def test_the_widest_stride_is_compiled_at_once():
    down = sparse_ops.SparseConv3d(4, 4, 3, 1 << 20)(tensor())
    np.testing.assert_array_equal(down.coords, [[0, 0, 0, 0], [1, 0, 0, 0]])


NARROW = np.zeros((5, 0), "float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseTensor(NARROW, COORDS, 4).dense(), "x: expected at least 1 of channels"),
        (lambda: F.segment_pool(NARROW, np.zeros(5, "int32"), 2), "x: expected at least 1 of channels"),
        (lambda: F.pool(NARROW, MAP, "max"), "x: expected at least 1 of channels"),
        (lambda: F.linear(feats(), np.zeros((0, 4), "float32")), "weight: expected at least 1 of cout"),
        (lambda: F.sparse_conv(feats(), np.zeros((0, 3, 3, 3, 4), "float32"), MAP), "weight: expected at least 1 of cout"),
    ],
)
def test_no_channels_are_refused(call, message):
    """`dense()` of them wrote behind its result, and others did not compile."""
    with pytest.raises(ValueError, match=message):
        call()


def test_a_kernel_as_large_as_the_padded_grid_fits():
    x = tensor()
    assert sparse_ops.SparseConv3d(4, 3, 6, padding=1)(x).spatial_shape == (1, 1, 1)
    assert sparse_ops.SparseMaxPool3d(4)(x).spatial_shape == (1, 1, 1)
    assert sparse_ops.SparseMaxPool3d(4)(SparseTensor(feats()[:0], COORDS[:0])).feats.shape == (0, 4)


GRAPHS = {
    "rows": (lambda x, w, c: op.linear(x, w), r"x: expected 6 channels, as weight \[3, 6\] takes, given 4"),
    "nn": (lambda x, w, c: nn.Linear(6, 3)(nn.Tensor(_expr=x))._expr, "Linear: x: expected 6 channels, given 4"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_channels_of_graphs_are_blamed_on_features(name):
    make, message = GRAPHS[name]
    rows, bb = tvm.tirx.Var("n", "int64"), relax.BlockBuilder()
    x, w = relax.Var("x", relax.TensorType([rows, 4], "float32")), relax.Var("w", relax.TensorType([3, 6], "float32"))
    with pytest.raises(ValueError, match=message), bb.function("main", [x, w, C]):
        bb.emit(make(x, w, C))


def test_features_and_coordinates_of_graphs_have_one_length():
    class Network(nn.Module):
        def forward(self, feats, coords):
            return nn.SymbolicSparseTensor.of(feats, coords).feats

    inputs = {"feats": spec.Tensor(["n", 5], "float32"), "coords": spec.Tensor(["m", 4], "int32")}
    with pytest.raises(ValueError, match="feats: expected as many rows as coords, m, given n"):
        Network().export_tvm({"forward": inputs})


def test_bfloat16_of_others_is_widened_for_biases():
    layer = sparse_ops.SubMConv3d(4, 4, 3)
    layer.load_state_dict({name: value.astype(ml_dtypes.bfloat16) for name, value in layer.state_dict().items()})
    assert layer.weight.dtype == ml_dtypes.bfloat16 and layer.bias.dtype == "float32"
    assert layer(SparseTensor(feats().astype(ml_dtypes.bfloat16), COORDS)).feats.shape == (5, 4)
