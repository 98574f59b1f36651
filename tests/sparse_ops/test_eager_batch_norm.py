"""Batch norm with running statistics, eager face: the layer against torch's, and folded into the convolution before it."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch

import sparse_ops
from sparse_ops import functional
from tests.tolerance import assert_close
from tir_kernels.spec.activation import ACTIVATIONS
from tir_kernels.spec.channel_affine import naive, of_batch_norm

CIN, COUT = 5, 8
VECTORS = ("running_mean", "running_var", "weight", "bias")


def trained(features: int = COUT, affine: bool = True) -> torch.nn.BatchNorm1d:
    """torch's layer in evaluation, with statistics as training leaves them; one channel never varied."""
    torch.manual_seed(0)
    layer = torch.nn.BatchNorm1d(features, eps=1e-3, affine=affine).eval().requires_grad_(False)
    for name in VECTORS[: 4 if affine else 2]:
        getattr(layer, name).normal_()
    layer.running_var.abs_()
    layer.running_var[0] = 0
    return layer


def ours(layer: torch.nn.BatchNorm1d) -> sparse_ops.BatchNorm1d:
    made = sparse_ops.BatchNorm1d(layer.num_features, layer.eps, layer.momentum, layer.affine)
    assert made.load_state_dict(layer.state_dict()) == ([], [])
    return made


def affine_of(layer) -> tuple[np.ndarray, np.ndarray]:
    vectors = (getattr(layer, name) for name in VECTORS)
    return of_batch_norm(*(None if vector is None else np.asarray(vector) for vector in vectors), layer.eps)


def tensor(rows: int = 60, dtype="float32", kind=np.asarray, shape=(5, 6, 7)) -> sparse_ops.SparseTensor:
    rng = np.random.default_rng(rows)
    cells = rng.permutation(int(np.prod(shape)))[:rows]
    coords = np.stack([np.zeros(rows, int), *np.unravel_index(cells, shape)], 1).astype("int32")
    feats = rng.standard_normal((rows, CIN)).astype(dtype)
    return sparse_ops.SparseTensor(kind(feats), kind(coords), shape, 1)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_layer_is_that_of_torch(rows, affine):
    layer, x = trained(affine=affine), np.random.default_rng(0).standard_normal((rows, COUT)).astype("float32")
    out = ours(layer)(x)
    assert type(out) is np.ndarray and out.dtype == np.float32
    scale = np.abs(affine_of(layer)).max() * max(np.abs(x).max(initial=0), 1)
    assert_close(out, naive(x, *affine_of(layer)), 3, dtype="float32", scale=scale)
    assert_close(out, layer(torch.from_numpy(x)).numpy(), 3, scale=scale)


def test_large_means():
    """What is near the mean of a channel cancels, as in torch."""
    layer = trained()
    layer.running_mean += 1000
    x = (layer.running_mean + torch.randn(20, COUT)).numpy()
    scale = np.abs(affine_of(layer)[0] * 1000).max()
    assert_close(ours(layer)(x), naive(x, *affine_of(layer)), 3, dtype="float32", scale=scale)


def test_kinds_of_arrays_and_tensors():
    layer = ours(trained(CIN))
    x = tensor(kind=torch.from_numpy)
    y = layer(x)
    assert y.coordinates is x.coordinates and torch.is_tensor(y.feats)
    np.testing.assert_array_equal(y.feats.numpy(), layer(x.feats.numpy()))
    narrow = x.feats.numpy().astype(ml_dtypes.bfloat16)
    out = layer(narrow)
    assert out.dtype == ml_dtypes.bfloat16
    assert_close(out, naive(narrow, *affine_of(layer)), dtype="bfloat16")


def test_function_has_any_number_of_axes():
    layer, x = trained(), np.random.default_rng(1).standard_normal((2, COUT, 3, 4), dtype=np.float32)
    vectors = [getattr(layer, name).numpy() for name in VECTORS]
    out = functional.batch_norm(x, *vectors, eps=layer.eps, activation="silu")
    assert_close(out, naive(x, *affine_of(layer), "silu"), 3, dtype="float32")


def test_state():
    layer = trained()
    made = ours(layer)
    assert sorted(made.state_dict()) == sorted(VECTORS)
    again = torch.nn.BatchNorm1d(COUT)
    again.load_state_dict({name: torch.as_tensor(value) for name, value in made.state_dict().items()})
    assert again.running_var[0] == 0
    narrow = {name: value.half() if value.is_floating_point() else value for name, value in layer.state_dict().items()}
    made.load_state_dict(narrow)
    assert made.running_mean.dtype == torch.float32
    with pytest.raises(ValueError, match=r"running_var: missing"):
        made.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "running_var"})
    with pytest.raises(ValueError, match=r"weight: not known"):
        sparse_ops.BatchNorm1d(COUT, affine=False).load_state_dict(layer.state_dict())


def test_values_written_in_place_count():
    layer, x = ours(trained()), np.ones((2, COUT), "float32")
    layer.running_mean[...] = 1
    layer.bias[...] = 3
    scale, _ = affine_of(layer)
    assert_close(layer(x), np.full((2, COUT), 3, "float32"), 3, scale=np.abs(scale).max())


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: sparse_ops.BatchNorm1d(0), "num_features: expected a positive int, given 0"),
        (lambda: sparse_ops.BatchNorm1d(4, -1.0), "eps: expected a number above 0, given -1.0"),
        (lambda: sparse_ops.BatchNorm1d(4, 1e-5, 0.1, True, False), "track_running_stats: expected True, .*, given False"),
        (lambda: sparse_ops.BatchNorm1d(4).train(), "mode: expected False, as there is no training here, given True"),
        (lambda: sparse_ops.BatchNorm1d(4)(tensor()), "input: expected 4 channels, given 5"),
        (lambda: sparse_ops.BatchNorm1d(4)(np.zeros((2, 4))), r"input: expected float32 or .*, given float64 \[2, 4\]"),
        (lambda: sparse_ops.BatchNorm1d(4)([1.0]), "input: expected float32"),
        (lambda: functional.batch_norm(np.zeros((2, 4), "f4"), None, None), "running_mean: expected float32"),
        (lambda: functional.channel_affine(np.zeros((2, 4), "f4"), *np.zeros((2, 3), "f4")), r"x: expected .*\[any, 3\]"),
    ],
)
def test_wrong_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
    assert sparse_ops.BatchNorm1d(4).train(False).eval()


LAYERS = {  # the length of a sum
    "submanifold": (lambda **more: sparse_ops.SubMConv3d(CIN, COUT, 3, **more), 27 * CIN),
    "strided": (lambda **more: sparse_ops.SparseConv3d(CIN, COUT, 2, 2, **more), 8 * CIN),
    "pointwise": (lambda **more: sparse_ops.SubMConv3d(CIN, COUT, 1, **more), CIN),
}
ACTIVATE = {
    "none": lambda: (),
    "relu": lambda: (sparse_ops.ReLU(),),
    "silu": lambda: (torch.nn.SiLU(),),
    "gelu_tanh": lambda: (torch.nn.GELU("tanh"),),
}


def called(network, x, monkeypatch) -> tuple[sparse_ops.SparseTensor, list[str]]:
    """The result, and which ops ran on features."""
    names, run = [], functional.run

    def record(name, *args):
        names.append(name)
        return run(name, *args)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "run", record)
        return network(x), [name for name in names if not name.endswith("_map") and name != "lookup"]


@pytest.mark.parametrize("norm", [ours, lambda layer: layer], ids=["ours", "torch's"])
@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", LAYERS)
def test_folded_is_unfolded(case, bias, activation, norm, monkeypatch):
    make, depth = LAYERS[case]
    convolution, layer = make(bias=bias), trained()
    network = sparse_ops.SparseSequential(convolution, norm(layer), *ACTIVATE[activation]())
    x = tensor()
    out, names = called(network, x, monkeypatch)
    assert names == ["linear" if case == "pointwise" else "sparse_conv"]
    before = convolution(x)
    scale, shift = affine_of(layer)
    size = np.abs(scale).max() * np.abs(before.feats).max() + np.abs(shift).max()  # a channel may be multiplied by 30
    expected = ACTIVATIONS[activation](naive(before.feats, scale, shift))
    assert_close(out.feats, expected, depth + 2, dtype="float32", scale=size)
    np.testing.assert_array_equal(out.coords, before.coords)
    assert_close(network(tensor(0)).feats, np.zeros((0, COUT)), dtype="float32")


def test_folded_in_bfloat16():
    """The folded weight is rounded a second time, once for all voxels."""
    convolution, layer = LAYERS["submanifold"][0](), trained()
    convolution.weight = convolution.weight.astype(ml_dtypes.bfloat16)
    x = tensor(dtype=ml_dtypes.bfloat16)
    out = sparse_ops.SparseSequential(convolution, ours(layer))(x)
    wide = copy.copy(convolution)
    wide.weight = convolution.weight.astype("float32")
    before = wide(x.replace_feature(x.feats.astype("float32"))).feats
    scale, shift = affine_of(layer)
    assert out.feats.dtype == ml_dtypes.bfloat16
    assert_close(out.feats, naive(before, scale, shift), 2, dtype="bfloat16")


CHANGES = {
    "weight of the convolution": lambda conv, norm: np.multiply(conv.weight, 2, out=conv.weight),
    "bias of the convolution": lambda conv, norm: np.add(conv.bias, 1, out=conv.bias),
    "another weight": lambda conv, norm: setattr(conv, "weight", conv.weight + 1),
    "no bias": lambda conv, norm: setattr(conv, "bias", None),
    "running_mean": lambda conv, norm: norm.running_mean.add_(1),
    "running_var": lambda conv, norm: norm.running_var.add_(1),
    "weight": lambda conv, norm: norm.weight.mul_(2),
    "bias": lambda conv, norm: norm.bias.add_(1),
    "eps": lambda conv, norm: setattr(norm, "eps", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_place_is_folded_again(change):
    convolution, layer, x = LAYERS["submanifold"][0](), trained(), tensor()
    network = sparse_ops.SparseSequential(convolution, layer)
    first, kept = network(x).feats.copy(), network._folded[0].layer()
    np.testing.assert_array_equal(network(x).feats, first)
    assert network._folded[0].layer() is kept  # nothing is made twice
    CHANGES[change](convolution, layer)
    out = network(x).feats
    assert network._folded[0].layer() is not kept and not np.array_equal(out, first)
    fresh = copy.deepcopy(convolution)
    assert_close(out, naive(fresh(x).feats, *affine_of(layer)), 27 * CIN + 2, dtype="float32")


def test_the_key_of_a_map_goes_with_the_layer():
    down = sparse_ops.SparseConv3d(CIN, COUT, 2, 2, indice_key="down")
    up = sparse_ops.SparseInverseConv3d(COUT, CIN, 2, "down")
    network = sparse_ops.SparseSequential(down, ours(trained()), sparse_ops.ReLU(), up, ours(trained(CIN)))
    x = tensor()
    assert network(x).coordinates is x.coordinates
    assert set(x.indice_dict) == {"down"} and len(network._folded) == 2
    down.indice_key = up.indice_key = "other"
    network(x)
    assert set(x.indice_dict) == {"down", "other"}


def hooked():
    layer = trained()
    layer.register_forward_hook(lambda *_: None)
    return layer


UNFOLDED = {
    "training": lambda: trained().train(),
    "no statistics": lambda: torch.nn.BatchNorm1d(COUT, track_running_stats=False).eval(),
    "hooks": hooked,
    "float64": lambda: trained().double(),
}


@pytest.mark.parametrize("case", UNFOLDED)
def test_what_is_applied_as_it_is(case):
    """A batch norm of torch that does more than its arrays say, or holds other arrays."""
    norm, convolution, x = UNFOLDED[case](), LAYERS["submanifold"][0](), tensor()
    network = sparse_ops.SparseSequential(convolution, norm)
    if case == "float64":
        with pytest.raises(RuntimeError, match=r"(?i)expected|type"):  # torch's own
            network(x)
        return
    mean = None if norm.running_mean is None else norm.running_mean.clone()
    with torch.no_grad():
        expected = copy.deepcopy(norm)(torch.from_numpy(convolution(x).feats)).numpy()
    np.testing.assert_array_equal(network(x).feats, expected)
    assert not network._folded
    if case == "training":
        assert not torch.equal(norm.running_mean, mean)


class Shifted(sparse_ops.SubMConv3d):
    """A layer of a user's, with a forward of its own."""

    def forward(self, x):
        y = super().forward(x)
        return y.replace_feature(np.abs(y.feats) + 1)


class Called(sparse_ops.SubMConv3d):
    def __call__(self, x):
        y = super().__call__(x)
        return y.replace_feature(np.abs(y.feats) + 1)


def replaced(module):
    """A module whose `forward` was replaced by one that adds 1."""
    forward = module.forward

    def shifted(x):
        y = forward(x)
        return y.replace_feature(y.feats + 1) if isinstance(y, sparse_ops.SparseTensor) else y + 1

    module.forward = shifted
    return module


CHANGED = {
    "class with a forward": lambda: (Shifted(CIN, COUT, 3), ours(trained())),
    "class with a call": lambda: (Called(CIN, COUT, 3), ours(trained())),
    "convolution": lambda: (replaced(sparse_ops.SubMConv3d(CIN, COUT, 3)), ours(trained())),
    "batch norm": lambda: (sparse_ops.SubMConv3d(CIN, COUT, 3), replaced(ours(trained()))),
    "batch norm of torch": lambda: (sparse_ops.SubMConv3d(CIN, COUT, 3), replaced(trained())),
    "activation": lambda: (sparse_ops.SubMConv3d(CIN, COUT, 3), ours(trained()), replaced(sparse_ops.ReLU())),
    "activation of torch": lambda: (sparse_ops.SubMConv3d(CIN, COUT, 3), ours(trained()), replaced(torch.nn.ReLU())),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_a_user_made_of_a_module_is_called(case):
    modules, x = CHANGED[case](), tensor()
    expected = x
    for module in modules:  # each in a container of its own, where there is nothing to fold
        expected = sparse_ops.SparseSequential(module)(expected)
    size = np.abs(expected.feats).max()
    assert_close(sparse_ops.SparseSequential(*modules)(x).feats, expected.feats, 27 * CIN + 2, dtype="float32", scale=size)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_folded_layer_goes_to_chosen_voxels(kernel):
    convolution, (scale, shift), x = sparse_ops.SubMConv3d(CIN, COUT, kernel), affine_of(trained()), tensor()
    made = convolution.with_affine(scale, shift, "relu")
    assert_close(made(x, coordinates=x).feats, made(x).feats, 27 * CIN, dtype="float32")


def test_hooks_of_all_modules_are_called():
    seen, network = [], sparse_ops.SparseSequential(sparse_ops.SubMConv3d(CIN, COUT, 3), trained(), torch.nn.ReLU())
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        network(tensor())
    finally:
        handle.remove()
    assert seen == [torch.nn.BatchNorm1d, torch.nn.ReLU]


def test_a_class_of_layers_that_changes_nothing_is_folded():
    class Narrow(sparse_ops.SubMConv3d):
        def __init__(self):
            super().__init__(CIN, COUT, 3)

    network = sparse_ops.SparseSequential(Narrow(), ours(trained()))
    network(tensor())
    assert network._folded


def test_other_channels_are_refused():
    network = sparse_ops.SparseSequential(sparse_ops.SubMConv3d(CIN, COUT, 3), sparse_ops.BatchNorm1d(COUT + 1))
    with pytest.raises(ValueError, match=f"input: expected {COUT + 1} channels, given {COUT}"):
        network(tensor())


def test_gradients_are_not_dropped_silently():
    norm = trained().requires_grad_(True)
    network = sparse_ops.SparseSequential(sparse_ops.SubMConv3d(CIN, COUT, 3), norm)
    with pytest.raises(ValueError, match="records gradients"):
        network(tensor(kind=torch.from_numpy))
    with torch.no_grad():
        assert not network(tensor(kind=torch.from_numpy)).feats.requires_grad and network._folded


def test_copies_and_pickles():
    network = sparse_ops.SparseSequential(sparse_ops.SubMConv3d(CIN, COUT, 3), ours(trained()), sparse_ops.ReLU())
    x = tensor()
    out = network(x).feats
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert not other._folded
        np.testing.assert_array_equal(other(x).feats, out)
    assert sorted(network.state_dict()) == sorted(["0.weight", "0.bias", *(f"1.{name}" for name in VECTORS)])


def test_wrong_arrays_of_the_convolution_are_named():
    network = sparse_ops.SparseSequential(sparse_ops.SubMConv3d(CIN, COUT, 3), ours(trained()))
    network[0].weight = network[0].weight.astype("float64")
    with pytest.raises(ValueError, match=r"weight: expected float32 .*\[8, 3, 3, 3, 5\], given float64"):
        network(tensor())
    network[0].weight = network[0].weight.astype("float32")
    network[1].running_var = network[1].running_var[:4]
    with pytest.raises(ValueError, match=r"running_var: expected float32 \[8\], given float32 \[4\]"):
        network(tensor())


def test_threads_share_what_is_folded():
    network = sparse_ops.SparseSequential(sparse_ops.SubMConv3d(CIN, COUT, 3), ours(trained()), sparse_ops.ReLU())
    clouds = [tensor(rows) for rows in (60, 61, 62, 63)]
    expected = [copy.deepcopy(network)(x).feats for x in clouds]
    with ThreadPoolExecutor(4) as executor:
        for found in (executor.map(lambda i: network(clouds[i % 4]).feats, range(80)), (network(x).feats for x in clouds)):
            for i, feats in enumerate(found):
                np.testing.assert_array_equal(feats, expected[i % 4])
