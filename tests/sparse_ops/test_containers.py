"""Eager containers: sequences, tables, ways out to dense arrays, sums and joins of features, and states by name."""

from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import tvm

import sparse_ops
from sparse_ops import SparseModule, SparseSequential, SparseTensor
from sparse_ops import functional as F
from sparse_ops.op.signature import FLOATS
from tests.tolerance import assert_close
from tir_kernels.spec import linear, segment_pool, sparse_conv
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_table
from tir_kernels.spec.pool import Reduction

torch = pytest.importorskip("torch")
COORDS = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 3, 2, 1], [2, 0, 0, 0], [2, 1, 1, 1]], "int32")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def feats(channels=4, seed=0):
    return np.random.default_rng(seed).standard_normal((len(COORDS), channels)).astype("float32")


def tensor(channels=4, seed=0, kind=lambda array: array, coords=COORDS):
    return SparseTensor(kind(feats(channels, seed)[: len(coords)]), coords, (4, 4, 4), 3)


def numbers(array) -> np.ndarray:
    return array.numpy() if hasattr(array, "numpy") else array


def oracle(x, layer, coords=COORDS):
    """A submanifold layer in float64."""
    table = naive_table(coords, coords, Geometry.submanifold(layer.kernel_size))
    weight = layer.weight.reshape(layer.out_channels, -1, layer.in_channels).transpose(1, 2, 0)
    return sparse_conv.naive(x, weight, table, layer.bias)


def test_a_sequence_is_its_modules_one_after_the_other():
    """Ours on tensors, functions and torch's modules on features, whatever their kind; the oracle says what comes out."""
    first, second = sparse_ops.SubMConv3d(4, 5, 3), sparse_ops.SubMConv3d(5, 6, (1, 3, 3))
    net = SparseSequential(first, sparse_ops.SiLU(), lambda array: 2 * array, torch.nn.Tanh(), second)
    h = np.tanh(2 * ACTIVATIONS["silu"](oracle(feats(), first)))
    expected = oracle(h.astype("float32"), second)
    for kind, of in ((np.ndarray, lambda array: array), (torch.Tensor, torch.from_numpy)):
        y = net(tensor(kind=of))
        assert isinstance(y.feats, kind)
        assert_close(numbers(y.feats), expected, 250, dtype="float32")
    assert net(tensor(coords=COORDS[:0])).feats.shape == (0, 6)
    y = SparseSequential(first, torch.nn.Tanh())(tensor(kind=tvm.runtime.tensor))
    assert isinstance(y.feats, tvm.runtime.Tensor)
    assert_close(y.feats.numpy(), np.tanh(oracle(feats(), first)), 120, dtype="float32")


def test_a_head_of_torch_behind_a_pool():
    head = torch.nn.Linear(4, 2)
    x = tensor()
    out = SparseSequential(sparse_ops.GlobalSumPool(), head)(x)
    assert isinstance(out, np.ndarray)
    summed = segment_pool.naive(x.feats, COORDS[:, 0], 3, Reduction("sum"))
    expected = summed @ head.weight.detach().numpy().T.astype("float64") + head.bias.detach().numpy()
    assert_close(out, expected, 8, dtype="float32")


def test_a_sequence_is_a_list_with_names():
    a, b, c = sparse_ops.ReLU(), sparse_ops.Identity(), sparse_ops.SparseMaxPool3d(2)
    net = SparseSequential(a, b)
    assert net.add(c) is net and (len(net), list(net), net[0], net[-1], net["1"]) == (3, [a, b, c], a, c, b)
    assert list(net[1:]) == [b, c] and isinstance(net[1:], SparseSequential)
    named = SparseSequential(OrderedDict(one=a, two=b), three=c)
    assert named["three"] is c and [name for name, _ in named.named_children()] == ["one", "two", "three"]
    assert repr(SparseSequential(a)) == "SparseSequential(0=ReLU())"


def test_tables():
    x = tensor()
    pair = sparse_ops.ConcatTable(sparse_ops.Identity(), sparse_ops.ReLU())
    both, relu = pair(x), np.maximum(x.feats, 0)
    assert [type(y) for y in both] == [SparseTensor, SparseTensor]
    joined, summed = sparse_ops.JoinTable()(both), sparse_ops.AddTable()(both)
    np.testing.assert_array_equal(joined.feats, np.concatenate([x.feats, relu], 1))
    np.testing.assert_array_equal(summed.feats, x.feats + relu)
    np.testing.assert_array_equal(SparseSequential(pair, sparse_ops.AddTable())(x).feats, summed.feats)


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
@pytest.mark.parametrize("name", ["ReLU", "SiLU", "GELU", "GELU tanh"])
def test_activations(name, dtype):
    layer = sparse_ops.GELU("tanh") if name == "GELU tanh" else getattr(sparse_ops, name)()
    x = feats().astype(dtype)
    y = layer(SparseTensor(x, COORDS))
    expected = ACTIVATIONS[name.lower().replace(" ", "_")](x.astype("float64"))
    for got in (y.feats, layer(x), layer(x.reshape(1, 5, 2, 2)).reshape(5, 4)):
        assert got.dtype == x.dtype
        assert_close(got, expected, 1, dtype=str(np.dtype(dtype)))
    assert layer(x[:0]).shape == (0, 4)


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
@pytest.mark.parametrize(("name", "mode"), [("Max", "max"), ("Avg", "mean"), ("Sum", "sum")])
def test_global_pools(name, mode, dtype):
    """Per batch element, 0 for the one without voxels; of the dtype and kind of the features."""
    x = feats().astype(dtype)
    layer = getattr(sparse_ops, f"SparseGlobal{name}Pool")()
    assert type(layer) is getattr(sparse_ops, f"Global{name}Pool")
    out = layer(SparseTensor(x, COORDS, batch_size=3))
    expected = segment_pool.naive(x, COORDS[:, 0], 3, Reduction(mode))
    assert out.shape == (3, 4) and out.dtype == x.dtype and not out[1].any()
    assert_close(out, expected, 3, dtype=str(np.dtype(dtype)))
    assert layer(SparseTensor(x[:0], COORDS[:0], (4, 4, 4), 2)).tolist() == [[0] * 4] * 2
    if dtype == "float32":
        assert isinstance(layer(tensor(kind=torch.from_numpy)), torch.Tensor)
        one = SparseTensor(x, np.ascontiguousarray(np.arange(10, dtype="int32").reshape(5, 2) * [0, 1], "int32"))
        assert_close(layer(one), segment_pool.naive(x, np.zeros(5, "int32"), 1, Reduction(mode)), 5, dtype="float32")


def test_to_dense():
    x, grid = tensor(), np.zeros((3, 4, 4, 4, 4), "float32")
    grid[COORDS[:, 0], :, COORDS[:, 1], COORDS[:, 2], COORDS[:, 3]] = x.feats
    np.testing.assert_array_equal(SparseSequential(sparse_ops.ToDense())(x), grid)
    np.testing.assert_array_equal(sparse_ops.ToDense(False)(x), grid.transpose(0, 2, 3, 4, 1))
    np.testing.assert_array_equal(x.dense(True), grid)  # as spconv: channels first
    np.testing.assert_array_equal(x.dense(channels_first=False), grid.transpose(0, 2, 3, 4, 1))
    np.testing.assert_array_equal(tensor(kind=tvm.runtime.tensor).dense().numpy(), grid)


KINDS = {"numpy": lambda array: array, "torch": torch.from_numpy, "tvm": tvm.runtime.tensor}


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_joins_of_features(kind, other):
    """Of the kind of the first; voxels that are equal need not be the same object."""
    a, b, c = tensor(4, 1, KINDS[kind]), tensor(4, 2, KINDS[other]), tensor(3, 3, KINDS[other])
    expected = feats(4, 1) + feats(4, 2)
    results = {
        "+": (a + b, expected),
        "sum": (sum([a, b]), expected),
        "sparse_add": (sparse_ops.sparse_add(a, b), expected[np.lexsort(COORDS.T[::-1])]),
        "sparse_add of a list": (sparse_ops.sparse_add([a, b]), expected[np.lexsort(COORDS.T[::-1])]),
        "cat": (sparse_ops.cat([a, c]), np.concatenate([feats(4, 1), feats(3, 3)], 1)),
        "cat of two": (sparse_ops.cat(a, c), np.concatenate([feats(4, 1), feats(3, 3)], 1)),
    }
    for name, (result, wanted) in results.items():
        assert type(result.feats) is type(a.feats), name
        np.testing.assert_array_equal(numbers(result.feats), wanted, err_msg=name)
    for name in ("+", "sum", "cat", "cat of two"):
        assert results[name][0].coordinates is a.coordinates and results[name][0].indice_dict is a.indice_dict


def test_sums_in_bfloat16_round_once():
    x, y = (SparseTensor(feats(4, seed).astype(BFLOAT16), COORDS) for seed in (1, 2))
    expected = (x.feats.astype("float32") + y.feats.astype("float32")).astype(BFLOAT16)
    np.testing.assert_array_equal((x + y).feats, expected)


class Block(SparseModule):
    """A user's own: children as attributes, in lists and in dicts."""

    def __init__(self):
        self.conv = sparse_ops.SubMConv3d(4, 4, 3)
        self.more = [sparse_ops.SubMConv3d(4, 4, 1, bias=False), torch.nn.BatchNorm1d(4)]
        self.heads = {"a": SparseSequential(sparse_ops.SubMConv3d(4, 2, 1), sparse_ops.ReLU())}
        self.width = 4

    def forward(self, x):
        h = x + self.conv(x)
        return self.heads["a"](SparseSequential(*self.more)(h))


NAMES = [
    "conv.weight",
    "conv.bias",
    "more.0.weight",
    "more.1.weight",
    "more.1.bias",
    "more.1.running_mean",
    "more.1.running_var",
    "more.1.num_batches_tracked",
    "heads.a.0.weight",
    "heads.a.0.bias",
]


def test_a_state_goes_from_network_to_network():
    first, second = Block().eval(), Block().eval()
    first.more[1].running_mean.fill_(0.5)
    state = first.state_dict()
    assert list(state) == NAMES and state["conv.weight"] is first.conv.weight
    x = tensor()
    assert not np.array_equal(first(x).feats, second(x).feats)
    assert second.load_state_dict(state) == ([], [])
    np.testing.assert_array_equal(first(x).feats, second(x).feats)
    h = x.feats + oracle(x.feats, first.conv)
    h = linear.naive(h.astype("float32"), first.more[0].pointwise_weight(first.more[0].weight))
    h = (h - 0.5) / np.sqrt(1 + 1e-5)
    head = first.heads["a"][0]
    expected = np.maximum(h @ head.pointwise_weight(head.weight).T.astype("float64") + head.bias, 0)
    assert_close(first(x).feats, expected, 130, dtype="float32")


def test_what_a_state_is_brought_into_form():
    """Not contiguous, narrower than float32, recording gradients, numpy for a module of torch: all are taken."""
    layer, x = sparse_ops.SubMConv3d(4, 3, 3), tensor(kind=torch.from_numpy)
    weight, bias = np.asfortranarray(layer.weight), layer.bias.astype(BFLOAT16)
    expected = oracle(feats(), layer) - layer.bias + bias.astype("float64")
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert layer.bias.dtype == "float32"
    assert_close(numbers(layer(x).feats), expected, 110, dtype="float32")
    held = torch.nn.Parameter(torch.from_numpy(np.array(weight, order="C")))
    transposed = torch.nn.Parameter(held.detach().permute(4, 3, 2, 1, 0).contiguous()).permute(4, 3, 2, 1, 0)
    for parameter in (held, transposed):
        layer.load_state_dict({"weight": parameter, "bias": torch.from_numpy(bias.astype("float32"))})
        assert_close(numbers(layer(x).feats), expected, 110, dtype="float32")
    norm = SparseSequential(torch.nn.BatchNorm1d(4))
    norm.load_state_dict({name: numbers(value) + 1 for name, value in norm.state_dict().items()})
    assert norm[0].weight.tolist() == [2.0] * 4


def test_a_state_that_does_not_fit_changes_nothing():
    net, x = Block().eval(), tensor()
    before = net(x).feats
    state = Block().state_dict()
    del state["conv.bias"]
    state |= {
        "other": feats(),
        "conv.weight": state["conv.weight"].astype("float64"),
        "heads.a.0.weight": feats(),
        "more.1.weight": feats(),
        "more.0.weight": [1.0],
    }
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    says, floats = str(error.value), " or ".join(FLOATS)
    for words in (
        "conv.bias: missing",
        "other: not known",
        f"conv.weight: expected {floats} [4, 3, 3, 3, 4], given float64 [4, 3, 3, 3, 4]: pass array.astype(",
        f"heads.a.0.weight: expected {floats} [2, 1, 1, 1, 4], given float32 [5, 4]",
        "more.1.weight: expected shape [4], given float32 [5, 4]",
        f"more.0.weight: expected {floats} [4, 1, 1, 1, 4], given list [1.0]",
    ):
        assert words in says, says
    np.testing.assert_array_equal(net(x).feats, before)
    with pytest.raises(ValueError, match=r"conv\.weight") as error:
        net.load_state_dict(state, strict=False)
    assert "missing" not in str(error.value)
    missing, unexpected = net.load_state_dict({"conv.bias": np.ones(4, "float32"), "other": feats()}, strict=False)
    assert (missing, unexpected) == ([name for name in NAMES if name != "conv.bias"], ["other"])
    assert net.conv.bias.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="state: expected arrays by name, given int 3"):
        net.load_state_dict(3)
    with pytest.raises(ValueError, match=r"pass tensor.float\(\)"):
        net.load_state_dict({"conv.bias": torch.ones(4).double()}, strict=False)


X, ONE = tensor(), SparseTensor(feats(), COORDS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseSequential(3), "module: expected a module or a function of features, given int 3"),
        (lambda: SparseSequential(sparse_ops.ReLU()).add(sparse_ops.ReLU(), "0"), r"name: expected one .* given '0'"),
        (lambda: SparseSequential(**{"a.b": sparse_ops.ReLU()}), r"name: expected one without a dot .* given 'a.b'"),
        (lambda: sparse_ops.ToDense()(feats()), "input: expected a SparseTensor, given float32"),
        (lambda: sparse_ops.GlobalAvgPool()(feats()), "input: expected a SparseTensor, given float32"),
        (lambda: sparse_ops.GlobalAvgPool()(SparseTensor(feats(), COORDS[[0, 1, 1, 2, 3]])), "coords: row 2 repeats"),
        (lambda: sparse_ops.AddTable()([]), "input: expected a list of SparseTensors"),
        (lambda: sparse_ops.AddTable()([X, 1]), "input: expected a SparseTensor, given int 1"),
        (lambda: sparse_ops.GELU("fast"), "approximate: expected one of 'none', 'tanh', given 'fast'"),
        (lambda: X.dense(1), "channels_first: expected True or False, given 1"),
        (lambda: X + feats(), r"\+: expected a SparseTensor on the same voxels, given float32 \[5, 4\]: use replace_feature"),
        (lambda: feats() + X, r"\+: expected a SparseTensor on the same voxels, given float32"),
        (lambda: torch.ones(5, 4) + X, r"\+: expected a SparseTensor on the same voxels, given float32"),
        (lambda: X + 1.0, r"\+: expected a SparseTensor on the same voxels, given float 1.0"),
        (lambda: X + tensor(3), r"\+: expected equal channels, given 4 and 3"),
        (lambda: X + ONE, r"\+: expected features on the same voxels, .* see sparse_add"),
        (lambda: X + tensor(coords=np.ascontiguousarray(COORDS[::-1])), r"\+: expected features on the same voxels"),
        (lambda: X + X.replace_feature(feats().astype(BFLOAT16)), r"\+: expected equal dtypes, given float32 and bfloat16"),
        (lambda: sparse_ops.cat(), "tensors: expected at least one SparseTensor, given none"),
        (lambda: sparse_ops.cat([X, feats()]), r"tensors\[1\]: expected a SparseTensor, given float32 \[5, 4\]"),
        (lambda: sparse_ops.cat(X, ONE), "tensors: expected features on the same voxels"),
        (lambda: F.activation(feats(), "tanh"), "name: expected one of"),
        (lambda: F.activation(3, "relu"), "x: expected float32 .* given int 3"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
