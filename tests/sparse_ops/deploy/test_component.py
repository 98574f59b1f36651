"""Porting any module, and artifacts: round trips, and every way in which one can be wrong."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm
import tvm.support.cc
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.export import Dim

from sparse_ops.deploy.component import LIBRARY, MANIFEST, MODULE, PARAMETERS, Component
from sparse_ops.deploy.from_torch import port_component
from tests import NO_TORCH
from tests.tolerance import assert_close
from tir_kernels.dispatch import host_target

WIDTH, OUT = 24, 10


class Network(nn.Module):
    """One layer of each kind of parameter: weights, norms, a bare one, buffers; and two methods that share them."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, OUT)
        self.gain = nn.Parameter(torch.rand(OUT))
        self.batch_norm = nn.BatchNorm1d(OUT)
        self.batch_norm.running_mean.normal_()
        self.batch_norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.batch_norm(self.linear(self.norm(x)) * self.gain)

    def parts(self, x, others: dict):
        y = self.linear(x)
        return {"sum": y + others["bias"], "each": [y * other for other in others["list"]]}


def example() -> tuple[torch.Tensor, dict]:
    torch.manual_seed(1)
    return torch.randn(5, WIDTH), {"bias": torch.randn(OUT), "list": [torch.randn(5, OUT), torch.randn(OUT)]}


@cache
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


@cache
def component() -> Component:
    x, others = example()
    rows = Dim("rows", min=1)
    return port_component(network(), {"forward": (x,), "parts": (x, others)}, "network", dynamic={"forward": {"x": {0: rows}}})


@pytest.fixture
def folder(tmp_path) -> Path:
    return component().save(tmp_path / "artifact")


def check(actual, expected) -> None:
    assert_close(np.asarray(actual), expected.numpy(), WIDTH + 8)


def test_results_are_those_of_torch():
    x, others = example()
    check(component()(x), network()(x))
    actual, expected = component()["parts"](x, others), network().parts(x, others)
    check(actual["sum"], expected["sum"])
    assert len(actual["each"]) == 2
    for one, other in zip(actual["each"], expected["each"], strict=True):
        check(one, other)


def test_arguments_by_name_of_any_kind_and_size():
    x = example()[0]
    assert isinstance(component()(x), torch.Tensor)
    assert isinstance(component()(x=x.numpy()), np.ndarray)
    assert isinstance(component()(tvm.runtime.tensor(x.numpy())), tvm.runtime.Tensor)
    for rows in (1, 2, 7):
        check(component()(x.repeat(2, 1)[:rows].numpy()), network()(x.repeat(2, 1)[:rows]))


def test_what_two_functions_read_is_packed_once():
    names = [spec.name for spec in component().manifest.packed]
    functions = component().manifest.functions
    shared = set(functions["forward"].packed) & set(functions["parts"].packed)
    assert {names[i] for i in shared} == {"linear.bias", next(name for name in names if "linear.weight" in name)}
    assert len(names) == len(set(names))
    assert component().packed_bytes == sum(array.nbytes for array in map(np.from_dlpack, component()._packed))


def test_buffers_are_parameters_of_the_component_and_of_nothing_else():
    assert [spec.name for spec in component().manifest.parameters] == [
        name for name, value in network().state_dict().items() if value.is_floating_point()
    ]
    assert "running_mean" in dict(network().batch_norm.named_buffers())


@pytest.mark.parametrize("form", ["library", "module"])
def test_artifact_gives_the_same_bits(form, tmp_path):
    x, others = example()
    folder = component().save(tmp_path / "one", form)
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [MANIFEST, PARAMETERS, LIBRARY if form == "library" else MODULE]
    )
    loaded = Component.load(folder)
    assert loaded.manifest == component().manifest
    for again in (loaded, Component.load(loaded.save(tmp_path / "two"))):
        np.testing.assert_array_equal(again(x).numpy(), component()(x).numpy())
        np.testing.assert_array_equal(again["parts"](x, others)["each"][1], component()["parts"](x, others)["each"][1])


class Chosen(nn.Module):
    """Constants of its own, and rows chosen by an index: what TVM has something to say of."""

    def forward(self, x, rows):
        return torch.nn.functional.embedding(rows, x) * torch.tensor([1.0, 2.0, 3.0])


def test_nothing_is_written_to_the_terminal(tmp_path, capfd):
    """Neither while compiling nor by code that ran and is then saved, nor when that is loaded."""
    x, rows = torch.rand(4, 3), torch.tensor([2, 0])
    ported = port_component(Chosen(), (x, rows), "chosen")
    ported(x, rows)
    ported.save(tmp_path / "chosen")
    loaded = Component.load(tmp_path / "chosen")
    assert torch.equal(loaded(x, rows), x[rows] * torch.tensor([1.0, 2.0, 3.0]))
    assert "Warning: " not in capfd.readouterr().err.replace("FutureWarning: ", "")  # torch's, of itself


def test_artifact_replaces_an_artifact_and_nothing_else(folder, tmp_path):
    before = (folder / PARAMETERS).read_bytes()
    component().with_parameters(arrays(2.0)).save(folder)
    assert (folder / PARAMETERS).read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["artifact"]  # nothing is left beside it
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder: expected a new folder or an artifact to replace"):
        component().save(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_parameters_are_mapped_not_read(tmp_path):
    """A component of 64 MB of weights adds little memory when it is loaded."""
    wide = nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    folder = port_component(wide, (torch.ones(1, 4096),), "wide").save(tmp_path / "wide")
    script = (
        "import resource, sys\nfrom sparse_ops.deploy.component import Component\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "Component.load(sys.argv[1]).packed_bytes\nbefore = used()\n"
        "kept = [Component.load(sys.argv[1]) for _ in range(4)]\n"
        "print(kept[0].packed_bytes, (used() - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", NO_TORCH + script, folder], capture_output=True, text=True, check=True)
    size, grown = done.stdout.split()
    assert int(size) >= 4096 * 4096 * 4
    assert int(grown) < int(size) / 4


def arrays(factor: float = 1.0) -> dict[str, np.ndarray]:
    state = network().state_dict()
    return {name: value.numpy() * np.float32(factor) for name, value in state.items() if value.is_floating_point()}


def test_other_parameters():
    doubled = Network().eval().requires_grad_(False)
    doubled.load_state_dict(network().state_dict() | {name: torch.from_numpy(array) for name, array in arrays(2.0).items()})
    x = example()[0]
    check(component().with_parameters(arrays(2.0))(x), doubled(x))
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays().items()}
    widened = {name: array.astype(np.float32) for name, array in narrow.items()}
    given, expected = (component().with_parameters(state)(x).numpy() for state in (narrow, widened))
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("linear.weight"), r"linear\.weight: missing, expected \[10, 24\]"),
        (lambda state: state.update(other=np.zeros(3, "f4")), "other: not a parameter"),
        (lambda state: state.update(gain=np.zeros(3, "f4")), r"gain: expected float32 \[10\], given float32 \[3\]"),
        (lambda state: state.update(gain=np.zeros(10)), r"gain: expected float32 \[10\], given float64 \[10\]"),
        (lambda state: state.update(gain=[0.0] * 10), "gain: expected an array, given list"),
    ],
)
def test_parameters_that_do_not_fit_are_named(change, message):
    state = arrays()
    change(state)
    with pytest.raises(ValueError, match=message):
        component().with_parameters(state)


def rewritten(folder: Path, change) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def weight(tensors: dict) -> str:
    return next(name for name in tensors if "linear.weight" in name)


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / PARAMETERS)
    change(tensors)
    save_file(tensors, folder / PARAMETERS)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


DAMAGE = {
    "no folder": (lambda folder: [file.unlink() for file in folder.iterdir()], r"No such file.*manifest\.json"),
    "no library": (lambda folder: (folder / LIBRARY).unlink(), r"No such file.*library\.so"),
    "no parameters": (lambda folder: (folder / PARAMETERS).unlink(), r"No such file.*parameters\.safetensors"),
    "truncated manifest": (lambda folder: truncate(folder / MANIFEST), "artifact"),
    "truncated library": (lambda folder: truncate(folder / LIBRARY), r"library\.so: not what manifest\.json says"),
    "truncated parameters": (lambda folder: truncate(folder / PARAMETERS), "(?i)incomplete|deserializ"),
    "another library": (lambda folder: (folder / LIBRARY).write_bytes(b"\x7fELF"), r"library\.so: not what"),
    "a manifest of something else": (lambda folder: (folder / MANIFEST).write_text("[]"), "not the manifest of a component"),
    "another format": (lambda folder: rewritten(folder, lambda m: m.update(format=2)), "expected format 3, given 2"),
    "other numbers": (lambda folder: rewritten(folder, lambda m: m["packed"][0].update(runs_in="int3")), "expected runs_in of"),
    "no channels": (lambda folder: rewritten(folder, lambda m: m["packed"][0].update(apart=[-1])), "expected apart to list"),
    "another version": (
        lambda folder: rewritten(folder, lambda m: m["versions"].update({"apache-tvm": "0.26.0"})),
        r"made by apache-tvm 0\.26\.0, this is",
    ),
    "another system": (
        lambda folder: rewritten(folder, lambda m: m.update(system="Plan9 mips")),
        "made for Plan9 mips, this is",
    ),
    "another target": (
        lambda folder: rewritten(folder, lambda m: m["cpu_features"].append("wings")),
        "made for the target .*, this CPU lacks wings",
    ),
    "code outside": (
        lambda folder: rewritten(folder, lambda m: m["code"].update(file="../library.so")),
        "not what manifest",
    ),
    "missing parameter": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop(weight(tensors))),
        r"linear\.weight\): missing, expected float32",
    ),
    "extra parameter": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update(other=np.zeros(3, "f4"))),
        "other: not a parameter",
    ),
    "misshapen parameter": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update({"norm.bias": np.zeros(3, "f4")})),
        r"norm\.bias: expected float32 \[24\], given F32 \[3\]",
    ),
    "parameter of another dtype": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update({"norm.bias": np.zeros(24, "f8")})),
        r"norm\.bias: expected float32 \[24\], given F64 \[24\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_artifact_is_refused(damage, folder):
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(ValueError, match=message) as raised:
        Component.load(folder)
    assert str(folder) in str(raised.value)


def test_another_target_is_saved_but_not_run(tmp_path):
    """The weights are packed for it here, by code for this CPU."""
    features = tvm.target.codegen.llvm_get_cpu_features
    here = set(features(host_target()))
    targets = [tvm.target.Target({"kind": "llvm", "mcpu": cpu}) for cpu in ("znver5", "graniterapids")]  # no CPU is both
    lacking = next(target for target in targets if set(features(target)) - here)
    ported = port_component(nn.Linear(8, 40), (torch.ones(2, 8),), "for others", target=lacking)
    folder = ported.save(tmp_path / "artifact")
    for call in (lambda: ported(np.ones((2, 8), "f4")), lambda: ported.with_parameters({}), lambda: Component.load(folder)):
        with pytest.raises(ValueError, match=r"made for the target .* lacks"):
            call()


def test_without_a_compiler_the_module_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tvm.support.cc, "get_cc", lambda: None)
    assert (component().save(tmp_path / "artifact") / MODULE).is_file()
    with pytest.raises(ValueError, match="form: expected 'module', as no C compiler is found"):
        component().save(tmp_path / "other", "library")
    assert [file.name for file in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, others: component()(x[:, :3].contiguous()), r"x: expected float32 \[rows, 24\], given float32 \[5, 3\]"),
        (lambda x, others: component()(x.double()), r"x: expected float32 \[.*, given float64"),
        (lambda x, others: component()(x, y=x), "forward: expected the arguments x, given 1 by position, y"),
        (lambda x, others: component()(x, x=x), "forward: expected the arguments x"),
        (lambda x, others: component()(), "forward: expected the arguments x, given 0 by position"),
        (lambda x, others: component()["parts"](x, x), "others: expected a dict of bias, list, given Tensor"),
        (lambda x, others: component()["parts"](x, {"bias": x}), "others: expected a dict of bias, list, given a dict of bias"),
        (
            lambda x, others: component()["parts"](x, others | {"list": [x]}),
            r"others\.list: expected a sequence of 2, given 1 of them",
        ),
        (lambda x, others: component()["forwards"](x), "function: expected one of forward, parts, given 'forwards'"),
        (lambda x, others: component().save("x", "zip"), "form: expected one of library, module, given 'zip'"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(*example())


class Attentions(nn.Module):
    """What the import would get wrong if it came as one op."""

    def forward(self, q, k):
        scaled = nn.functional.scaled_dot_product_attention(q, k, k, scale=0.5)
        causal = nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)
        (single,) = (scaled + causal).split(3, dim=1)
        return single


def test_attention_with_options_and_a_tensor_given_twice():
    torch.manual_seed(2)
    q, k = torch.randn(2, 1, 3, 7, 8)
    ported = port_component(Attentions(), (q, q), "attentions")
    assert_close(ported(q, k), Attentions()(q, k).numpy(), 8 + 7, scale=float(k.abs().max()))


class Strange(nn.Linear):
    def of_any(self, *tensors):
        return tensors[0]

    def branching(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "inputs", "options", "message"),
    [
        (Strange, (torch.ones(1, 2),), {}, "module: expected a torch.nn.Module, given type"),
        (Strange(2, 2), [torch.ones(1, 2)], {}, "inputs: expected a tuple of tensors for forward, given list"),
        (Strange(2, 2), (1.0,), {}, "inputs: expected tensors for forward, given float"),
        (Strange(2, 2), (), {}, r"inputs: expected forward\(input.*given 0 tensors"),
        (Strange(2, 2), {"backward": (torch.ones(1, 2),)}, {}, "inputs: expected methods of the module, given 'backward'"),
        (Strange(2, 2), {"of_any": (torch.ones(1, 2),)}, {}, "inputs: expected a method with named arguments only"),
        (Strange(2, 2), {"branching": (torch.ones(1, 2),)}, {}, "module: branching cannot be ported"),
        (Strange(2, 2).double(), (torch.ones(1, 2),), {}, "module: expected float32 parameters on a CPU, given weight"),
        (Strange(2, 2), (torch.ones(1, 2),), {"precision": "int4"}, "precision: expected"),
        (Strange(2, 2), (torch.ones(1, 2),), {"name": ""}, "name: expected a name, given ''"),
        (Strange(2, 2), {"forward": (torch.ones(1, 2),)}, {"dynamic": {"x": None}}, "dynamic: expected methods of inputs"),
        (Strange(2, 2), (torch.ones(1, 2),), {"target": tvm.target.Target("vulkan")}, "target: expected a CPU target"),
    ],
)
def test_what_cannot_be_ported(module, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        port_component(module, inputs, **({"name": "strange"} | options))
