"""Batch norm with running statistics, graph face: `nn.BatchNorm` alone and folded, and modules that torch exported."""

import functools

import numpy as np
import pytest
import torch
import tvm
from torch.export import Dim
from tvm import relax
from tvm.relax.frontend.nn import spec

from sparse_ops import nn
from sparse_ops.build import build, pack_params
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.transform import cpu_pipeline, recognize
from sparse_ops.transform.lift_params import PACKED_NAMES, TRANSFORM_PARAMS
from tests.sparse_ops.transform.graphs import calls, ops
from tests.tolerance import assert_close
from tir_kernels.dispatch import host_target
from tir_kernels.spec import linear, sparse_conv
from tir_kernels.spec.channel_affine import naive, of_batch_norm
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_table

SUBM = Geometry.submanifold((3, 3, 3))
CHANNELS, EPS = 8, 1e-3


class Network(nn.Module):
    """Each layer that batch norm becomes part of, one that it does not, and what follows."""

    def __init__(self):
        self.before = nn.BatchNorm(5, EPS, affine=False)  # nothing before it
        self.conv = nn.SubMConv3d(5, CHANNELS, 3)
        self.of_conv = nn.BatchNorm(CHANNELS, EPS)
        self.point = nn.SubMConv3d(CHANNELS, CHANNELS, 1, bias=False)
        self.of_point = nn.BatchNorm(CHANNELS, EPS, affine=False)
        self.up = nn.SubMConv3d(CHANNELS, CHANNELS, 3)
        self.of_up = nn.BatchNorm(CHANNELS, EPS)

    def forward(self, feats, coords):
        x = self.before(nn.SymbolicSparseTensor.of(feats, coords))
        conv = self.of_conv(self.conv(x), activation="relu")
        point = nn.Activation("silu")(self.of_point(self.point(conv)))
        up = self.of_up(self.up.of_upsampled(point, (point.sites, nn.Tensor(_expr=_numbers(feats)))))
        return x.feats, conv.feats, point.feats, up.feats


def _numbers(feats):
    """Every row its own parent."""
    return relax.BlockBuilder.current().emit(relax.op.arange(0, feats.shape[0], 1, "int32"))


@functools.cache
def exported():
    inputs = {"feats": spec.Tensor(["n", 5], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    return Network().export_tvm({"forward": inputs})


@functools.cache
def state() -> dict:
    rng = np.random.default_rng(1)
    values = {name: rng.standard_normal([int(n) for n in p.shape]).astype("float32") for name, p in exported()[1]}
    return {name: np.abs(value) if name.endswith("var") else value for name, value in values.items()}


@functools.cache
def machine():
    vm = relax.VirtualMachine(build(exported()[0], lift_params=True), tvm.cpu())
    tensors = [tvm.runtime.tensor(value) for value in state().values()]
    return vm["forward"], pack_params(vm, "forward", tensors.__getitem__)


def normalised(x, name, activation="none"):
    given = (state().get(f"{name}.{key}") for key in ("running_mean", "running_var", "weight", "bias"))
    return naive(x, *of_batch_norm(*given, EPS), activation)


def test_what_is_left_of_a_network():
    after = recognize()(_as_main(exported()[0]))
    names = [name for name in ops(after) if name.startswith("sparse_ops.") and not name.endswith("_map")]
    assert names == [f"sparse_ops.{name}" for name in ("channel_affine", "sparse_conv", "linear", "upsampled_conv")]
    activations = [calls(after, name)[0].attrs["activation"] for name in names]
    assert activations == ["none", "relu", "silu", "none"]


def _as_main(mod):
    return tvm.IRModule({"main": mod["forward"].with_attr("global_symbol", "main")})


def test_weights_are_folded_where_they_are_packed():
    """Once: nothing of `main` but the kernels of the layers reads a parameter of a batch norm."""
    with host_target():
        mod = cpu_pipeline(lift_params=True)(exported()[0])
    packed = [str(name) for name in mod["forward" + TRANSFORM_PARAMS].attrs[PACKED_NAMES]]
    assert len(packed) == 2 + 2 + 2 + 2  # of every layer, and of the batch norm that stands alone
    assert sum("of_conv.running_var" in name for name in packed) == 2


@pytest.mark.parametrize("rows", [0, 1, 2, 300])
def test_network(rows):
    rng = np.random.default_rng(rows)
    coords = np.stack([np.zeros(rows, int), *np.unravel_index(rng.permutation(9**3)[:rows], (9, 9, 9))], 1).astype("int32")
    x = rng.standard_normal((rows, 5)).astype("float32")
    function, packed = machine()
    out = [array.numpy() for array in function(*(tvm.runtime.tensor(array) for array in (x, coords)), *packed)]
    p, table = state(), naive_table(coords, coords, SUBM)
    before = normalised(x, "before")
    conv = sparse_conv.naive(before, _by_tap(p["conv.weight"]), table, p["conv.bias"])
    conv = normalised(conv, "of_conv", "relu")
    point = linear.naive(conv, p["point.weight"].reshape(CHANNELS, CHANNELS).T)
    point = normalised(point, "of_point", "silu")
    up = normalised(sparse_conv.naive(point, _by_tap(p["up.weight"]), table, p["up.bias"]), "of_up")
    for found, expected, depth in zip(out, (before, conv, point, up), (2, 137, 146, 363), strict=True):
        assert_close(found, expected, depth, dtype="float32")


def _by_tap(weight):
    """[Cout, kx, ky, kz, Cin] -> [taps, Cin, Cout]."""
    return weight.reshape(weight.shape[0], -1, weight.shape[-1]).transpose(1, 2, 0)


def forward(make):
    """A network of one layer, exported."""

    class Single(nn.Module):
        def __init__(self):
            self.layer = make()

        def forward(self, x):
            return self.layer(x)

    return Single().export_tvm({"forward": {"x": spec.Tensor(["n", 5], "float32")}})


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: nn.BatchNorm(0), "num_features: expected an int of at least 1, given 0"),
        (lambda: nn.BatchNorm(5, 0.0), "eps: expected a number above 0, given 0.0"),
        (lambda: nn.BatchNorm(5, track_running_stats=False), "track_running_stats: expected True, .* given False"),
        (lambda: nn.BatchNorm(6), "BatchNorm: x: expected 6 channels, given 5"),
    ],
)
def test_wrong_arguments_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        forward(make)


def seeded(*layers):
    """The layers, in evaluation, with statistics as training leaves them."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*layers).eval().requires_grad_(False)
    for layer in model:
        if hasattr(layer, "running_mean"):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                layer.weight.normal_()
                layer.bias.normal_()
    return model


t = torch.nn
MODELS = {  # layers, an input, the op that is left, what a value is summed from
    "linear": ([t.Linear(16, 24), t.BatchNorm1d(24), t.ReLU()], (5, 16), "linear", 16),
    "conv3d": ([t.Conv3d(4, 8, 3, bias=False), t.BatchNorm3d(8), t.ReLU()], (2, 4, 5, 6, 7), "conv3d", 108),
    "conv2d": ([t.Conv2d(4, 8, 3, padding=1), t.BatchNorm2d(8, affine=False), t.ReLU()], (2, 4, 9, 8), "conv3d", 36),
}


@pytest.mark.parametrize(
    "case, precision", [("linear", "float32"), ("linear", "bfloat16"), ("conv3d", "float32"), ("conv2d", "float32")]
)
def test_modules_that_torch_exported(case, precision, monkeypatch):
    """The component calls one kernel, with all that follows inside."""
    layers, shape, name, depth = MODELS[case]
    model, found = seeded(*layers), []
    record = relax.transform.LegalizeOps
    monkeypatch.setattr(
        relax.transform, "LegalizeOps", lambda *rules: tvm.transform.Sequential([_recorder(found), record(*rules)])
    )
    component = port_component(model, (torch.zeros(shape),), case, dynamic=({0: Dim("n", min=1)},), precision=precision)
    (mod,) = found
    called = [n for n in ops(_main_of(mod, "forward")) if n.startswith("sparse_ops.")]
    assert called == [f"sparse_ops.{name}"]
    assert calls(_main_of(mod, "forward"), called[0])[0].attrs["activation"] == "relu"
    for rows in (1, 3):
        x = torch.randn(rows, *shape[1:])
        assert_close(component(x), model(x).numpy(), depth + 2, dtype=precision)


def _main_of(mod, name):
    return tvm.IRModule({"main": mod[name].with_attr("global_symbol", "main")})


def _recorder(found):
    @tvm.transform.module_pass(opt_level=0, name="Recorder")
    def keep(mod, context):
        found.append(mod)
        return mod

    return keep


def test_large_means_and_no_variance():
    """What torch computes: a channel that never varied is divided by sqrt(eps)."""
    model = seeded(t.Linear(16, 24, bias=False), t.BatchNorm1d(24))
    model[1].running_mean += 1000
    model[1].running_var[::2] = 0
    component = port_component(model, (torch.zeros(2, 16),), "large")
    x = torch.randn(2, 16)
    norm = model[1]
    scale, _ = of_batch_norm(*(array.numpy() for array in (norm.running_mean, norm.running_var, norm.weight)))
    size = np.abs(norm.running_mean.numpy() * scale).max()  # of what cancels
    found = component(x).numpy()
    assert_close(found, model.double()(x.double()).numpy(), 18, dtype="float32", scale=size)
