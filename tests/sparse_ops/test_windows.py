"""Windows of voxels: the partition against its oracle and its definition, attention within windows, modules that share it."""

from itertools import pairwise

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax
from tvm.relax.frontend.nn import spec

from sparse_ops import nn, op
from sparse_ops.build import build
from sparse_ops.eager import functional as F
from sparse_ops.testing.examples import features
from tests.sparse_ops.strategies import coordinates
from tests.tolerance import assert_close
from tir_kernels.spec import linear, rms_norm_heads
from tir_kernels.spec.windows import naive

WINDOWS = [((2, 2, 2), (0, 0, 0)), ((3, 1, 4), (1, 0, 3)), ((8, 8, 8), (4, 4, 4)), ((5, 5, 5), (-1, -7, 12))]


def window_of(coords, window, shift) -> np.ndarray:
    """The window of every row, [N, 4]."""
    return np.concatenate([coords[:, :1], (coords[:, 1:] + shift) // window], 1)


def masked_attention(q, k, v, seen) -> np.ndarray:
    """Attention over all pairs in float64, where row i sees the rows j with seen[i, j]. q, k, v [N, H, D] -> [N, H, D]."""
    logits = np.einsum("ihd,jhd->hij", q.astype("f8"), k.astype("f8")) / np.sqrt(q.shape[2])
    weights = np.where(seen, np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf)), 0)
    return np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), v.astype("f8"))


@pytest.mark.parametrize(("window", "shift"), WINDOWS)
@given(coords=coordinates(), repeats=st.integers(1, 2))
def test_partition(window, shift, coords, repeats):
    coords = np.repeat(coords, repeats, axis=0)  # rows need not be distinct
    order, offsets = F.window_partition(coords, window, shift)
    expected_order, expected_offsets = naive(coords, window, shift)
    np.testing.assert_array_equal(order, expected_order)
    np.testing.assert_array_equal(offsets, expected_offsets)

    assert order.dtype == offsets.dtype == "int32"
    assert sorted(order) == list(range(len(coords)))
    assert offsets[0] == 0 and offsets[-1] == len(coords) and (np.diff(offsets) > 0).all()
    found = []
    for first, last in pairwise(offsets):
        rows = order[first:last]
        assert (np.diff(rows) > 0).all()
        (one,) = {tuple(w) for w in window_of(coords[rows], window, shift)}
        found.append(one)
    assert found == sorted(set(found))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
    order, offsets = F.window_partition(np.full((rows, 4), 3, "int32"), 2)
    assert order.tolist() == list(range(rows)) and offsets.tolist() == list(range(rows + 1))


def test_widest_box():
    rng = np.random.default_rng(1)
    coords = np.concatenate([rng.integers(0, 4096, (3000, 1)), rng.integers(-32768, 32768, (3000, 3))], 1).astype("int32")
    coords[:2] = [[0, -32768, -32768, -32768], [4095, 32767, 32767, 32767]]
    for window, shift in (((1, 1, 1), (0, 0, 0)), ((3, 2, 70000), (2, 1, 69999))):
        for out, expected in zip(F.window_partition(coords, window, shift), naive(coords, window, shift), strict=True):
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, 32768, 0], "coords: row 1 has y 32768, expected -32768 to 32767"),
        ([0, -32769, 0, 0], "coords: row 1 has x -32769, expected -32768 to 32767"),
        ([-1, 0, 0, 0], "coords: row 1 has batch index -1, expected 0 to 4095"),
    ],
)
def test_rows_out_of_range_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        F.window_partition(np.array([[0, 0, 0, 0], row, row], "int32"), 2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: expected an int or three of at least 1, given 0"),
        ({"window": (2, 2)}, r"window: expected an int or three of at least 1, given \(2, 2\)"),
        ({"window": 8, "shift": -32769}, "shift: expected an int or three of at least -32768, given -32769"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=rf"sparse_ops\.window_partition: {message}"):
        op.window_partition(relax.Var("coords", relax.TensorType([2, 4], "int32")), **options)
    with pytest.raises(ValueError, match=rf"nn\.WindowedSelfAttention: {message}"):
        nn.WindowedSelfAttention(8, 2, **options)


@pytest.mark.parametrize("rows", [1, 40, 700])
def test_attention_within_windows_is_masked_attention(rows):
    rng = np.random.default_rng(rows)
    coords = rng.integers([0, -6, -6, -6], [3, 7, 7, 7], (rows, 4)).astype("int32")  # no order of batch elements
    q, k, v = (features(rng, rows, 2, 20) for _ in range(3))
    order, offsets = F.window_partition(coords, 4, 2)
    out = F.attention(q, k, v, offsets, offsets, q_order=order, k_order=order)
    window = window_of(coords, (4, 4, 4), (2, 2, 2))
    seen = (window[:, None] == window).all(-1)
    assert_close(out, masked_attention(q, k, v, seen), seen.sum(1).max(), dtype="float32")


class Layers(nn.Module):
    """Two layers on one partition and one on another, which `plan` makes for `forward`."""

    def __init__(self):
        self.first = nn.WindowedSelfAttention(16, 2, 4, qk_rms_norm=True)
        self.second = nn.WindowedSelfAttention(16, 2, (4, 4, 4), 8)  # a shift by whole windows is none
        self.shifted = nn.WindowedSelfAttention(16, 2, 4, 2)
        self.serialized = nn.SerializedSelfAttention(16, 2, 30, 7, 1, "hilbert")

    def plan(self, coords: nn.Tensor):
        sites = nn.Sites(coords)
        return sites.windows(4).fields, sites.windows(4, 2).fields, sites.serialized(30, 7, 1, "hilbert").fields

    def forward(self, feats: nn.Tensor, coords: nn.Tensor):
        return self._layers(nn.SymbolicSparseTensor.of(feats, coords))

    def planned(self, feats: nn.Tensor, coords: nn.Tensor, plain, shifted, serialized):
        x = nn.SymbolicSparseTensor.of(feats, coords)
        x.sites.put_windows(nn.Partition(*plain), 4)
        x.sites.put_windows(nn.Partition(*shifted), 4, 2)
        x.sites.put_serialized(nn.Partition(*serialized), 30, 7, 1, "hilbert")
        return self._layers(x)

    def _layers(self, x: nn.SymbolicSparseTensor):
        return [layer(x).feats for layer in (self.first, self.second, self.shifted, self.serialized)]


def test_modules_share_partitions_and_take_planned_ones():
    rng = np.random.default_rng(0)
    rows = {"feats": spec.Tensor(["n", 16], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    partitions = {name: nn.Partition.spec(name) for name in ("plain", "shifted", "serialized")}
    mod, params = Layers().export_tvm({"plan": {"coords": rows["coords"]}, "forward": rows, "planned": rows | partitions})
    text = {name: mod[name].script() for name in ("forward", "planned")}
    assert [text[name].count("sparse_ops.window_partition(") for name in text] == [2, 0]
    assert [text[name].count("sparse_ops.serialized_partition(") for name in text] == [1, 0]

    vm = relax.VirtualMachine(build(mod), tvm.cpu())
    p = {name: rng.standard_normal([int(n) for n in param.shape]).astype("float32") for name, param in params}
    weights = [tvm.runtime.tensor(value) for value in p.values()]
    feats = rng.standard_normal((300, 16)).astype("float32")
    coords = np.concatenate([np.zeros((300, 1)), rng.integers(0, 9, (300, 3))], 1).astype("int32")
    tensors = [tvm.runtime.tensor(array) for array in (feats, coords)]
    plan = vm["plan"](tensors[1], *weights)
    results = [out.numpy() for out in vm["forward"](*tensors, *weights)]
    for out, planned in zip(results, vm["planned"](*tensors, *plan, *weights), strict=True):
        np.testing.assert_array_equal(planned.numpy(), out)

    window = window_of(coords, (4, 4, 4), (0, 0, 0))
    seen = (window[:, None] == window).all(-1)
    for name, out in zip(("first", "second"), results, strict=False):
        qkv = linear.naive(feats, p[f"{name}.to_qkv.weight"], p[f"{name}.to_qkv.bias"])
        q, k, v = qkv.reshape(300, 3, 2, 8).swapaxes(0, 1)
        if name == "first":
            q, k = (rms_norm_heads.naive(a, p[f"first.{n}_rms_norm.gamma"]) for a, n in ((q, "q"), (k, "k")))
        h = masked_attention(q, k, v, seen).reshape(300, 16)
        logit = np.abs(q).max() * np.abs(k).max() * 8  # its error enlarges every weight
        expected = linear.naive(h, p[f"{name}.to_out.weight"], p[f"{name}.to_out.bias"])
        assert_close(out, expected, 16 + logit**2 + seen.sum(1).max() + 16, dtype="float32")
