"""Batch norm and ReLU of a container in one pass: the numbers of the modules, which are called wherever that could be seen."""

import numpy as np
import pytest
import torch
from torch import nn

import sparse_ops.torch.spconv as spconv
from sparse_ops.torch.spconv import modules as containers
from tests.tolerance import compare


def tensor(rows: int = 300, channels: int = 6) -> spconv.SparseConvTensor:
    rng = np.random.default_rng(0)
    cells = np.stack(np.unravel_index(rng.permutation(1000)[:rows], (1, 10, 10, 10)), 1)
    features = torch.from_numpy(rng.standard_normal((rows, channels), "float32"))
    return spconv.SparseConvTensor(features, torch.from_numpy(np.ascontiguousarray(cells, "int32")), [10, 10, 10], 1)


def norm(channels: int = 6, **options) -> nn.BatchNorm1d:
    made = nn.BatchNorm1d(channels, **options)
    with torch.no_grad():
        for vector in (made.running_mean, made.running_var, made.weight, made.bias):
            if vector is not None:
                vector.uniform_(0.5, 2)
    return made.eval()


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many modules each pass took."""
    found, original = [], containers.norm_and_activation

    def noted(modules, features):
        result = original(modules, features)
        found.append(0 if result is None else result[0])
        return result

    monkeypatch.setattr(containers, "norm_and_activation", noted)
    return found


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("behind", "taken"), [([nn.ReLU()], [2]), ([nn.GELU()], [1, 0]), ([], [1]), ([nn.ReLU(), norm()], [2, 1])]
)
def test_numbers_are_those_of_the_modules(calls, affine, behind, taken):
    x, modules = tensor(), [norm(affine=affine), *behind]
    with torch.no_grad():
        found = spconv.SparseSequential(*modules)(x).features
        wanted = nn.Sequential(*modules)(x.features)
    assert calls == taken
    result = compare(found.numpy(), wanted.numpy(), 8, name="features")
    assert result.ok, result


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows(rows):
    with torch.no_grad():
        found = spconv.SparseSequential(norm(), nn.ReLU())(tensor(rows))
    assert found.features.shape == (rows, 6)


def hooked(kind: str) -> nn.BatchNorm1d:
    made = norm()
    getattr(made, f"register_forward_{kind}")(lambda *_: None)
    return made


class Doubled(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(6),  # in training
        nn.BatchNorm1d(6, track_running_stats=False).eval(),
        hooked("hook"),
        hooked("pre_hook"),
        Doubled(6).eval(),
        nn.LayerNorm(6),
    ],
    ids=["training", "no statistics", "hook", "pre-hook", "a user's", "another norm"],
)
def test_the_module_itself_is_called_where_that_can_be_seen(calls, module):
    with torch.no_grad():
        spconv.SparseSequential(module, nn.ReLU())(tensor())
    assert calls == [0, 0]


def test_with_gradients_the_modules_are_called(calls):
    layer = norm()
    y = spconv.SparseSequential(layer, nn.ReLU())(tensor()).features
    y.sum().backward()
    assert calls == [0, 0]
    assert layer.weight.grad is not None


def test_a_hook_on_the_activation_sees_the_norm(calls):
    seen, relu = [], nn.ReLU()
    relu.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    with torch.no_grad():
        y = spconv.SparseSequential(norm(), relu)(tensor()).features
    assert calls == [1, 0]
    assert torch.equal(seen[0].relu(), y)
