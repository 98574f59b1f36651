"""Models written with `sparse_ops.nn` as components: code shared by copies, artifacts, and the generator on top of one."""

import dataclasses

import numpy as np
import pytest
from tvm.relax.frontend.nn import spec

from sam3d_tvm.components import slat_generator as slat
from sam3d_tvm.components.slat_model import slat_component
from sam3d_tvm.sampler import Guidance
from sparse_ops import nn
from sparse_ops.deploy.component import Component
from sparse_ops.deploy.from_nn import native_component

COORDS = np.array([[0, 1, 2, 3], [0, 1, 2, 4]], np.int32)


class Block(nn.Module):
    def __init__(self):
        self.conv = nn.SubMConv3d(4, 8, 3)

    def forward(self, feats, coords):
        return (self.conv(nn.SparseTensor.of(feats, coords)).feats, (coords,))


NAMES = {"conv.weight": "other.weight", "conv.bias": "other.bias"}
SHAPES = {"conv.weight": (8, 3, 3, 3, 4), "conv.bias": (8,), "other.weight": (8, 3, 3, 3, 4), "other.bias": (8,)}


def made(state, **options):
    model = Block()
    types = [spec.Tensor(["n", 4], "float32"), spec.Tensor(["n", 4], "int32")]
    functions = {"forward": spec.MethodSpec(model.forward, ["feats", "coords"], types, "plain", "none")}
    return native_component(model, functions, "block", state, copies={"forward": [NAMES]}, **options)


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
    with pytest.raises(ValueError, match="precision: expected one of 'float32', 'bfloat16', given 'int8'"):
        made(random_state(), precision="int8")


@pytest.fixture(scope="module")
def generator():
    config = slat.preset("tiny")
    return slat.SlatGenerator.from_preset("tiny"), slat_component(config, slat.seeded_state(config))


def test_the_generator_gives_the_same_from_an_artifact(generator, tmp_path):
    expected, component = generator
    config = expected.config
    random = np.random.default_rng(0)
    coords = np.argwhere(random.random((1, *[config.resolution] * 3)) < 0.05).astype(np.int32)
    cond = random.standard_normal((1, 5, config.cond_channels), np.float32)
    noise = random.standard_normal((len(coords), config.in_channels), np.float32)
    component.save(tmp_path / "slat")
    loaded = slat.SlatGenerator(config, Component.load(tmp_path / "slat"))
    given, wanted = (model.sample(coords, cond, noise, 2, Guidance(1.0)) for model in (loaded, expected))
    np.testing.assert_array_equal(given, wanted)
    assert np.isfinite(given).all()


def test_the_generator_refuses_a_component_of_another_config(generator):
    expected, component = generator
    config = dataclasses.replace(expected.config, num_blocks=expected.config.num_blocks + 1)
    with pytest.raises(ValueError, match=r"state: expected a component of this config, given one that differs in blocks\."):
        slat.SlatGenerator(config, component)
