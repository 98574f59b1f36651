"""The generator of structured latents on top of a component."""

import dataclasses

import numpy as np
import pytest

from sam3d_tvm.models import slat_generator as slat
from sam3d_tvm.sampler import Guidance
from sparse_ops.deploy.component import Component


@pytest.fixture(scope="module")
def generator():
    config = slat.preset("tiny")
    return slat.SlatGenerator.from_preset("tiny"), slat.slat_component(config, slat.seeded_state(config))


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
