"""float16 from end to end: eager layers on arrays of all kinds, a compiled component; and float64, which is refused."""

import json

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax.frontend.nn.spec import MethodSpec, Tensor

import sparse_ops
from sparse_ops import functional as F
from sparse_ops import nn, op
from sparse_ops.deploy.component import PARAMETERS, Component
from sparse_ops.deploy.from_nn import component_from_nn
from sparse_ops.testing.examples import features, voxels
from sparse_ops.transform.precision import PRECISIONS
from tests.tolerance import assert_close
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_table
from tir_kernels.spec.sparse_conv import naive

KINDS = {"numpy": lambda array: array, "torch": torch.from_numpy, "tvm": tvm.runtime.tensor}
ROWS, CIN, COUT = 60, 12, 20


def example():
    """coords, feats, weight, bias, and what the oracle says; all of the same random numbers."""
    rng = np.random.default_rng(0)
    coords = voxels(rng, ROWS, batch=1, low=0)
    feats, weight = features(rng, ROWS, CIN, dtype="float16"), features(rng, COUT, 3, 3, 3, CIN, dtype="float16")
    bias = features(rng, COUT)
    table = naive_table(coords, coords, Geometry.submanifold((3, 3, 3)))
    return coords, feats, weight, bias, naive(feats, weight.reshape(COUT, -1, CIN).transpose(1, 2, 0), table, bias)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_layers(kind):
    """Rounded once: the sums are float32."""
    coords, feats, weight, bias, expected = example()
    given = KINDS[kind]
    layer = sparse_ops.SubMConv3d(CIN, COUT, 3)
    layer.load_state_dict({"weight": weight, "bias": bias})
    y = layer(sparse_ops.SparseTensor(given(feats), given(coords)))
    assert str(y.feats.dtype).removeprefix("torch.") == "float16" and type(y.feats) is type(given(feats))
    found = y.feats.numpy() if kind != "numpy" else y.feats
    assert_close(found, expected, dtype="float16")
    pooled = sparse_ops.SparseMaxPool3d(2)(y)
    assert str(pooled.feats.dtype).removeprefix("torch.") == "float16"
    total = sparse_ops.sparse_add(y, y)
    doubled = total.feats.numpy() if kind != "numpy" else total.feats
    np.testing.assert_array_equal(np.sort(doubled, 0), np.sort(2 * found, 0))  # its rows are in an order of their own


def test_what_is_too_large_becomes_infinite_and_sums_do_not():
    x = np.full((1, 64), 60000, "float16")
    weight = np.stack([np.ones(64), np.tile([1, -1], 32)]).astype("float16")
    np.testing.assert_array_equal(F.linear(x, weight), np.array([[np.inf, 0]], "float16"))
    mean = F.segment_pool(np.repeat(x, 3, 0), np.zeros(3, "int32"), 1, "mean")
    np.testing.assert_array_equal(mean, x)


class Network(nn.Module):
    def __init__(self, dtype):
        self.conv = nn.SubMConv3d(CIN, COUT, 3, dtype=dtype)

    def forward(self, feats, coords):
        return self.conv(nn.SymbolicSparseTensor.of(feats, coords)).feats


def component(dtype, precision="float32"):
    _, _, weight, bias, _ = example()
    model = Network(dtype)
    types = [Tensor(["n", CIN], dtype), Tensor(["n", 4], "int32")]
    functions = {"forward": MethodSpec(model.forward, ["feats", "coords"], types, "plain", "none")}
    return component_from_nn(model, functions, "network", {"conv.weight": weight, "conv.bias": bias}, precision=precision)


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_of_float16(kind, tmp_path):
    """Inputs, outputs and parameters; and from its folder."""
    coords, feats, *_, expected = example()
    made = component("float16")
    given = KINDS[kind]
    out = made(given(feats), given(coords))
    assert str(out.dtype).removeprefix("torch.") == "float16" and type(out) is type(given(feats))
    out = out.numpy() if kind != "numpy" else out
    assert_close(out, expected, dtype="float16")
    again = Component.load(made.save(tmp_path / "artifact"))(feats=feats, coords=coords)
    np.testing.assert_array_equal(again, out)
    with pytest.raises(ValueError, match=r"feats: expected float16 .* given float32"):
        made(feats.astype("float32"), coords)


def test_the_precision_of_a_component():
    """Inputs and outputs stay float32; what flows in between is rounded."""
    coords, feats, *_, expected = example()
    assert "float16" in PRECISIONS
    out = component("float32", "float16")(feats.astype("float32"), coords)
    assert out.dtype == np.float32
    assert_close(out, expected, dtype="float16")
    np.testing.assert_array_equal(out, out.astype("float16"))


def test_the_manifest_names_the_dtype(tmp_path):
    made = component("float16")
    assert [spec.dtype for spec in made.manifest.parameters] == ["float16", "float32"]
    folder = made.save(tmp_path / "artifact")
    header = (folder / PARAMETERS).read_bytes()
    entries = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert {entries[spec.name]["dtype"] for spec in made.manifest.packed} == {"F32"}  # widened once, as it is packed


@pytest.mark.parametrize(
    ("kind", "cast"), [("numpy", r"feats\.astype\('float32'\)"), ("torch", r"feats\.float\(\)"), ("tvm", "feats as float32")]
)
def test_float64_is_refused_with_the_cast_that_helps(kind, cast):
    coords, feats, *_ = example()
    wide = KINDS[kind](feats.astype("float64"))
    with pytest.raises(ValueError, match=f"feats: expected float32 or bfloat16 or float16 .* given float64 .*: pass {cast}"):
        sparse_ops.SparseTensor(wide, coords)
    with pytest.raises(ValueError, match=f"x: expected float32 .* given float64 .*: pass {cast.replace('feats', 'x')}"):
        F.linear(wide, np.ones((5, CIN), "float32"))


def test_float64_in_a_graph():
    x = relax.Var("x", relax.TensorType((3, 4), "float64"))
    message = r"x: expected .* float32 or bfloat16 or float16.* given .*: cast it by relax\.op\.astype\(\.\.\., 'float32'\)"
    with pytest.raises(ValueError, match=message):
        relax.BlockBuilder().normalize(op.softmax(x))
