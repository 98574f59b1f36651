"""Models written with `sparse_ops.nn` as components: code shared by copies, and artifacts."""

import numpy as np
import pytest
from tvm.relax.frontend.nn import spec

from sparse_ops import nn
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_nn import component_from_nn

COORDS = np.array([[0, 1, 2, 3], [0, 1, 2, 4]], np.int32)


class Block(nn.Module):
    def __init__(self):
        self.conv = nn.SubMConv3d(4, 8, 3)

    def forward(self, feats, coords):
        return (self.conv(nn.SymbolicSparseTensor.of(feats, coords)).feats, (coords,))


NAMES = {"conv.weight": "other.weight", "conv.bias": "other.bias"}
SHAPES = {"conv.weight": (8, 3, 3, 3, 4), "conv.bias": (8,), "other.weight": (8, 3, 3, 3, 4), "other.bias": (8,)}


def made(state, **options):
    model = Block()
    types = [spec.Tensor(["n", 4], "float32"), spec.Tensor(["n", 4], "int32")]
    functions = {"forward": spec.MethodSpec(model.forward, ["feats", "coords"], types, "plain", "none")}
    return component_from_nn(model, functions, "block", state, copies={"forward": [NAMES]}, **options)


def random_state():
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def component():
    return made(random_state())


@pytest.mark.parametrize("function", ["forward", "forward.1"])
def test_copies_share_code_and_have_parameters_of_their_own(component, function, tmp_path):
    state = random_state()
    weight, bias = (state[name] for name in (("conv.weight", "conv.bias") if function == "forward" else NAMES.values()))
    feats = np.random.default_rng(1).standard_normal((2, 4), np.float32)
    first = weight[:, 1, 1, 1] @ feats[0] + weight[:, 1, 1, 2] @ feats[1] + bias  # the other row is the next along z
    second = weight[:, 1, 1, 1] @ feats[1] + weight[:, 1, 1, 0] @ feats[0] + bias
    out, (coords,) = component[function](feats, COORDS)
    np.testing.assert_allclose(out, [first, second], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(coords, COORDS)
    component.save(tmp_path / "artifact")
    np.testing.assert_array_equal(Component.load(tmp_path / "artifact")[function](feats=feats, coords=COORDS)[0], out)


def test_no_rows(component):
    out, (coords,) = component(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.int32))
    assert out.shape == (0, 8)
    assert coords.shape == (0, 4)


def test_other_parameters(component):
    state = random_state() | {
        "other.bias": np.full(8, 3, np.float32),
        "other.weight": np.zeros(SHAPES["other.weight"], np.float32),
    }
    changed, feats = component.with_parameters(state), np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(changed["forward.1"](feats, COORDS)[0], np.full((2, 8), 3))
    np.testing.assert_array_equal(changed(feats, COORDS)[0], component(feats, COORDS)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("other.bias"), r"other.bias: missing, expected \[8\]"),
        (lambda state: state.update(more=np.zeros(1, np.float32)), "more: not a parameter"),
        (
            lambda state: state.update({"conv.bias": np.zeros(9, np.float32)}),
            r"conv.bias: expected float32 \[8\], given float32 \[9\]",
        ),
    ],
)
def test_states_that_do_not_fit(change, message):
    state = random_state()
    change(state)
    with pytest.raises(ValueError, match=message):
        made(state)


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match=r"precision: expected one of 'float32', .*'int8', 'int7', given 'int4'"):
        made(random_state(), precision="int4")
