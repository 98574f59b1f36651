"""`convert`: models of spconv's own layers and of user code on them."""

import copy
import io
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
spconv = pytest.importorskip("spconv.pytorch")

from spconv.pytorch.spatial import RemoveDuplicate  # noqa: E402

import sparse_ops.torch.spconv as ours  # noqa: E402
from sparse_ops.torch import convert  # noqa: E402
from sparse_ops.torch.ops import CALLS  # noqa: E402
from tests.sparse_ops.torch import users_code  # noqa: E402
from tests.sparse_ops.torch.clouds import features, one_thread, runnable, tensor, voxels  # noqa: E402
from tests.tolerance import assert_close  # noqa: E402

INPUTS = features(60), voxels(60)
DEPTH = 8 * 27 * 4  # products behind a value of the network


@pytest.fixture(autouse=True)
def alone():
    torch.manual_seed(0)
    with torch.no_grad(), one_thread():
        yield


def made(cls=users_code.Network):
    model = cls().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.uniform_(-1, 1)
    return model


def test_a_model_computes_the_same_with_the_same_parameters():
    model = made()
    expected = model(*INPUTS)
    before = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    modules = [id(module) for module in model.modules()]
    seen = []
    model.up.register_forward_hook(lambda *_: seen.append(1))
    model.stem[1].train(True)
    assert convert(model) is model
    assert model.stem[1].training and not model.up.training
    model.eval()
    assert_close(model(*INPUTS).numpy(), expected.numpy(), DEPTH)
    assert expected.abs().max() > 0 and len(seen) == 1
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == before
    assert [id(module) for module in model.modules()] == modules and model.shared is model.down[3]
    assert model.down[0].get_max_num_voxels() > 0
    convert(model)  # once more changes nothing
    assert [type(module) for module in convert(model).modules()] == [type(module) for module in model.modules()]


def test_modules_are_ours_and_what_they_were():
    model = convert(made())
    for module, mine, theirs in (
        (model.up, ours.SparseInverseConv3d, spconv.SparseInverseConv3d),
        (model.down, ours.SparseSequential, spconv.SparseSequential),
        (model.stem, ours.SparseSequential, users_code.Inherits),
        (model.body, ours.SparseSequential, users_code.Own),
        (model.down[1], ours.SubMConv3d, users_code.Named),
        (model.join, ours.JoinTable, spconv.JoinTable),
        (model.pool, ours.SparseMaxPool3d, spconv.SparseMaxPool3d),
    ):
        assert isinstance(module, mine) and isinstance(module, theirs)
        assert type(module).__name__ == theirs.__name__
    assert type(model.shared) is users_code.Block and model.down[1].answer == 42
    assert type(model.body).forward is users_code.Own.forward


def test_no_kernel_of_spconv_runs(monkeypatch):
    model = convert(made())
    for name in ("get_indice_pairs", "indice_conv", "indice_maxpool"):
        monkeypatch.setattr(spconv.ops, name, None)
    model(*INPUTS)


def test_a_layer_alone_is_converted():
    layer = spconv.SubMConv3d(4, 3, 3, bias=False)
    x = tensor(spconv)
    expected = layer(x).features
    y = convert(layer)(x)
    assert_close(y.features.numpy(), expected.numpy(), 27 * 4)
    assert isinstance(y, spconv.SparseConvTensor) and isinstance(y, ours.SparseConvTensor)
    assert isinstance(convert(ours.SubMConv3d(4, 3, 3)), ours.SubMConv3d)
    mine = convert(layer)(tensor(ours))
    assert torch.equal(mine.features, y.features) and not isinstance(mine, spconv.SparseConvTensor)


def test_maps_are_shared_behind_tensors_of_spconv(monkeypatch):
    calls, op = [], CALLS["submanifold_map"]
    monkeypatch.setitem(CALLS, "submanifold_map", lambda *args, **more: calls.append(1) or op(*args, **more))
    layer = convert(spconv.SubMConv3d(4, 4, 3, bias=False))
    x = tensor(spconv)
    y = layer(layer(x))
    layer(x)
    layer(spconv.SparseConvTensor(y.features, y.indices, y.spatial_shape, 1))
    assert len(calls) == 1


def test_results_of_converted_layers_are_copied_and_pickled():
    model = convert(made())
    expected = model(*INPUTS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(*INPUTS), expected)
        assert isinstance(other.stem, users_code.Inherits) and isinstance(other.up, ours.SparseInverseConv3d)
    x = convert(spconv.SparseConv3d(4, 4, 3, 2, 1, indice_key="k"))(tensor(spconv))
    y = copy.deepcopy(x)
    assert isinstance(y, spconv.SparseConvTensor) and torch.equal(y.features, x.features)
    assert torch.equal(ours.SparseInverseConv3d(4, 4, 3, "k", bias=False)(y).indices, x.indice_dict["k"].indices)


def test_what_cannot_be_converted_is_listed_and_nothing_changes():
    quantized = spconv.SubMConv3d(2, 2, 3)
    quantized.groups = 2
    instance = spconv.SubMConv3d(2, 2, 3)
    instance.forward = lambda x: x
    model = torch.nn.ModuleDict(
        {
            "good": torch.nn.Sequential(spconv.SubMConv3d(2, 2, 3)),
            "four": torch.nn.Sequential(spconv.SparseConv4d(2, 2, 3)),
            "own": users_code.OwnForward(2, 2, 3),
            "patched": instance,
            "groups": quantized,
            "even": spconv.SubMConv3d(2, 2, 2),
            "duplicates": RemoveDuplicate(),
        }
    )
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="model: cannot be converted") as error:
        convert(model)
    words = str(error.value)
    for part in (
        "four.0: SparseConv4d: ndim: expected one to 3 axes, given 4",
        "own: OwnForward: it has a forward of its own",
        "patched: SubMConv3d: it has a forward of its own",
        "groups: SubMConv3d: groups: expected 1, given 2",
        "even: SubMConv3d: kernel_size: expected odd sizes",
        "duplicates: RemoveDuplicate: there is none of ours",
    ):
        assert part in words
    assert "good" not in words
    assert [type(module) for module in model.modules()] == classes
    with pytest.raises(ValueError, match=r"model: expected a torch.nn.Module, given list"):
        convert([])


def test_states_load_both_ways():
    theirs, mine = made(), convert(made())
    for value in mine.state_dict().values():
        value.zero_()
    mine.load_state_dict(theirs.state_dict())
    assert_close(mine(*INPUTS).numpy(), theirs(*INPUTS).numpy(), DEPTH)
    theirs.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("cls", [users_code.Network, users_code.DataDecide])
def test_a_converted_model_is_exported(cls):
    model = convert(made(cls))
    expected = model(*INPUTS)
    rows = torch.export.Dim("n")
    program = torch.export.export(model, INPUTS, dynamic_shapes={"features": {0: rows}, "indices": {0: rows}})
    assert torch.equal(runnable(program)(*INPUTS), expected)
    kinds = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert "sparse_ops" in kinds
    # Behind tracing spconv's constructor is what it was.
    assert type(tensor(spconv)) is spconv.SparseConvTensor


def test_a_program_without_spconv_converts_nothing():
    code = """
import sys, torch, sparse_ops.torch as s
model = torch.nn.Sequential(torch.nn.ReLU())
assert s.convert(model) is model and "spconv" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
