"""Programs, eager calls and components on the emulated CUDA device: where tensors lie, what is refused, what artifacts say."""

import json

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from sparse_ops import devices, op
from sparse_ops.build import build
from sparse_ops.deploy.calibrate import calibrate
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.eager import functional as F
from sparse_ops.torch import spconv
from tests.cuda_device import cuda_target, device
from tests.sparse_ops.walk import module_of
from tests.tolerance import assert_close
from tir_kernels.dispatch import host_target

rng = np.random.default_rng(3)
X = rng.standard_normal((70, 8)).astype("float32")
INDEX = rng.integers(-1, 70, 33).astype("int32")
SELECTED = np.where(INDEX[:, None] < 0, 0, X[INDEX]).astype("float32")


@pytest.fixture(autouse=True)
def emulated():
    device()


def selection():
    return build(module_of(op.gather_rows, (X, INDEX), [("n", 8), ("m",)]), cuda_target())


def test_arguments_are_copied_to_the_device():
    program = selection()
    for x in (tvm.runtime.tensor(X), tvm.runtime.tensor(X, device())):
        out = program["main"](x, tvm.runtime.tensor(INDEX))
        assert out.device == program.device == device()
        np.testing.assert_array_equal(out.numpy(), SELECTED)


def test_errors_of_a_call_are_those_of_a_cpu_and_the_next_call_is_right():
    program, bad = selection(), INDEX.copy()
    bad[[20, 5, 30]] = 99, 70, -2
    with pytest.raises(ValueError) as expected:
        F.gather_rows(X, bad)
    with pytest.raises(ValueError) as error:
        program["main"](tvm.runtime.tensor(X), tvm.runtime.tensor(bad))
    assert str(error.value) == str(expected.value)
    assert "entry 5 is 70" in str(error.value)
    np.testing.assert_array_equal(program["main"](tvm.runtime.tensor(X), tvm.runtime.tensor(INDEX)).numpy(), SELECTED)


def test_eager_calls_run_for_the_target_in_scope_or_where_arrays_lie():
    with cuda_target():
        out = F.gather_rows(X, INDEX)
        assert isinstance(out, np.ndarray)
        np.testing.assert_array_equal(out, SELECTED)
        there = F.gather_rows(tvm.runtime.tensor(X), tvm.runtime.tensor(INDEX))
        assert there.device == device()
    on_device = F.gather_rows(tvm.runtime.tensor(X, device()), tvm.runtime.tensor(INDEX))
    assert on_device.device == device()
    np.testing.assert_array_equal(on_device.numpy(), SELECTED)
    np.testing.assert_array_equal(F.gather_rows(X, INDEX), SELECTED)  # the CPU's function is another one


class Network(nn.Module):
    """Dense layers, some of which no kernel of ours computes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = torch.softmax(self.second(nn.functional.silu(self.first(x))), -1)
        return x / (x.amax(0) + x.sum(0)).exp()


def ported(**options):
    torch.manual_seed(0)
    return port_component(Network(), (torch.tensor(X),), "network", dynamic={"x": {0: torch.export.Dim("n")}}, **options)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_components_are_saved_for_a_device_and_loaded(precision, tmp_path):
    component = ported(target=devices.cuda_target(), precision=precision)  # compared with torch as it is made
    expected = ported()(X)
    folder = component.save(tmp_path / "network")
    loaded = Component.load(folder)
    assert loaded.manifest.target["kind"] == "cuda" and loaded.manifest.target["arch"] == "sm_90"
    out = loaded(X)
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, component(X))
    assert_close(out, expected, 24 + 70, dtype=precision)
    assert isinstance(loaded(torch.tensor(X)), torch.Tensor)
    assert loaded(tvm.runtime.tensor(X, device())).device == device()


def test_tf32_is_asked_for(tmp_path):
    """Components say so, and differ from float32 by no more than TF32 rounds."""
    component = ported(target=cuda_target(), precision="tf32")  # compared with torch as it is made
    folder = component.save(tmp_path / "network")
    assert json.loads((folder / "manifest.json").read_text())["precision"] == "tf32"
    loaded = Component.load(folder)
    assert {spec.runs_in for spec in loaded.manifest.packed if len(spec.shape) == 2} == {"tf32"}
    found, exact = loaded(X), ported(target=cuda_target())(X)
    assert_close(found, exact, 2, dtype="float16")  # two layers; TF32 has as many bits
    with pytest.raises(AssertionError):
        assert_close(found, exact, 24 + 70)


def test_eager_calls_of_tf32():
    weight, x = rng.standard_normal((9, 8)).astype("float32"), tvm.runtime.tensor(X, device())
    exact, on_cpu = F.linear(x, weight).numpy(), F.linear(X, weight)
    devices.use_tf32()
    try:
        found = F.linear(x, weight).numpy()
        np.testing.assert_array_equal(F.linear(X, weight), on_cpu)
    finally:
        devices.use_tf32(False)
    np.testing.assert_array_equal(F.linear(x, weight).numpy(), exact)
    assert_close(found, exact, dtype="float16")
    with pytest.raises(AssertionError):
        assert_close(found, exact, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(module_of(op.gather_rows, (X, INDEX), [("n", 8), ("m",)]), host_target(), precision="tf32"),
        lambda: ported(precision="tf32"),
    ],
    ids=["build", "port_component"],
)
def test_no_cpu_has_tf32(make):
    words = (
        "precision: expected one of 'float32', 'bfloat16', 'float16', 'int8', 'int7', given 'tf32', which only CUDA devices "
        "have, and a target of kind 'llvm'"
    )
    with pytest.raises(ValueError, match=words):
        make()


def test_integer_products_are_float16_on_a_device():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    inputs = (torch.tensor(X),)
    with pytest.warns(UserWarning, match="precision: network gains nothing by it on the target .*: int8 is float16 there"):
        component = port_component(model, inputs, "network", precision="int8", target=cuda_target(), check=False)
    expected = port_component(model, inputs, "network", precision="float16", target=cuda_target(), check=False)
    assert component.manifest.packed == expected.manifest.packed
    words = "component: expected one with layers of integer products, given 'network' of precision int8: CUDA devices have none"
    with pytest.raises(ValueError, match=words):
        calibrate(component, [inputs], {name: value.numpy() for name, value in model.state_dict().items()})


class Embedding(nn.Module):
    """A layer that reads a parameter alone."""

    def __init__(self):
        super().__init__()
        self.places, self.layer = nn.Parameter(torch.randn(70, 8)), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.layer(self.places)


def test_weights_are_packed_for_a_device_that_is_not_here(tmp_path):
    component = port_component(Embedding(), (torch.tensor(X),), "embedding", target=devices.cuda_target_of("sm_120"))
    folder = component.save(tmp_path / "embedding")
    with pytest.raises(ValueError, match=r'"sm_120"}, this device has compute capability 9\.0: port the component again'):
        Component.load(folder)


class SparseNetwork(nn.Module):
    """A map goes from op to op, whose arrays have other dimensions on a device."""

    def __init__(self):
        super().__init__()
        self.layers = spconv.SparseSequential(spconv.SubMConv3d(4, 8, 3, indice_key="same"), nn.ReLU())

    def forward(self, feats, coords):
        return self.layers(spconv.SparseConvTensor(feats, coords, [8, 8, 8], batch_size=1)).features


def test_a_network_of_spconvs_names_is_ported_for_a_device():
    torch.manual_seed(0)
    model, coords = SparseNetwork().eval(), (torch.rand(1, 8, 8, 8) < 0.1).nonzero().int().contiguous()
    inputs, n = (torch.randn(len(coords), 4), coords), torch.export.Dim("n")
    dynamic = {"feats": {0: n}, "coords": {0: n}}
    component = port_component(model, inputs, "sparse", dynamic=dynamic, target=cuda_target())  # compared as it is made
    with torch.no_grad():
        expected = model(*(x[:9] for x in inputs))
    assert_close(component(*(x[:9] for x in inputs)).numpy(), expected.numpy(), 27 * 4)
    assert component(*(x[:0] for x in inputs)).shape == (0, 8)


def test_parsing_targets():
    assert devices.parse_target("cpu").kind.name == "llvm"
    assert devices.parse_target("cuda").attrs["arch"] == "sm_90"
    assert devices.parse_target("cuda:sm_80").attrs["arch"] == "sm_80"
    for text, words in (
        ("gpu", "target: expected 'cpu', 'cuda', or 'cuda:' and an architecture such as sm_90, given 'gpu'"),
        ("cuda:90", "target: expected an arch such as 'sm_90', given '90'"),
        ("cuda:sm_70", "target: expected a compute capability of at least 8.0, given 7.0"),
    ):
        with pytest.raises(ValueError, match=words):
            devices.parse_target(text)
    with pytest.raises(ValueError, match="device: expected the number of a CUDA device, below 1, given 7"):
        devices.cuda_device(7)
    with pytest.raises(ValueError, match="device: expected the number of a CUDA device, 0 or more, given -1"):
        devices.use_device(-1)


def test_layers_of_torch_run_for_the_target_in_scope():
    import sparse_ops.torch.spconv as spconv

    torch.manual_seed(1)
    layer = spconv.SubMConv3d(4, 8, 3)
    indices = (torch.rand(1, 4, 4, 4) < 0.4).nonzero().int().contiguous()
    features = torch.randn(len(indices), 4)

    def call():
        with torch.no_grad():
            return layer(spconv.SparseConvTensor(features, indices, [4, 4, 4], 1)).features

    expected = call()
    with cuda_target():
        found = call()
    assert found.device.type == "cpu"
    assert_close(found.numpy(), expected.numpy(), 27 * 4, dtype="float32")


def test_a_map_of_torch_serves_where_it_was_built():
    """Layers build another, for tensors on the same indices and for those under a key; the ops refuse it."""
    torch.manual_seed(2)
    down, up = spconv.SparseConv3d(4, 8, 3, 2, 1, indice_key="down"), spconv.SparseInverseConv3d(8, 4, 3, indice_key="down")
    indices = (torch.rand(1, 5, 5, 5) < 0.4).nonzero().int().contiguous()
    x = spconv.SparseConvTensor(torch.randn(len(indices), 4), indices, [5, 5, 5], 1)
    with torch.no_grad():
        on_cpu = down(x)
        built, expected = on_cpu.find_indice_pair("down"), up(on_cpu).features
        arrays = built._built.arrays
        with cuda_target():
            for between in (on_cpu, down(x)):
                assert_close(up(between).features.numpy(), expected.numpy(), 27 * 12)
            assert torch.equal(down(x).find_indice_pair("down").indice_pairs, built.indice_pairs)
            words = "kernel_map: expected one that was built for a CUDA device, where this call runs, given one for a CPU"
            with pytest.raises(ValueError, match=words):
                torch.ops.sparse_ops.sparse_conv(x.features, down.weight, *arrays, on_cpu.indices)
