"""Steps of samplers as CUDA graphs, on the emulated device."""

import numpy as np
import pytest

from sam3d_tvm.models import slat_generator, structure_flow
from sam3d_tvm.models.slat_generator import SlatGenerator
from sam3d_tvm.models.slat_generator.network import compile_model
from sam3d_tvm.models.structure_flow import StructureFlow
from sam3d_tvm.sampler import Guidance
from sparse_ops import devices
from tests.cuda_device import cuda_graphs, cuda_target
from tests.golden import case_ss_flow
from tests.sam3d_tvm.models.test_structure_flow import COND, CONFIG, LATENTS, module
from tests.sam3d_tvm.tiny import normal

STEPS = {"steps": 6, "guidance": Guidance(strength=2.0, interval=(0.0, 500.0))}  # half of them with two branches


@pytest.fixture
def captured(monkeypatch):
    """What is made to be captured."""
    made = []
    for run in (slat_generator.run, structure_flow.run):

        def noted(*args, make=run.Captured, **options):
            made.append(make(*args, **options))
            return made[-1]

        monkeypatch.setattr(run, "Captured", noted)
    with cuda_graphs():
        yield made


def without_graphs(sample):
    devices.use_cuda_graphs(False)
    try:
        return sample()
    finally:
        devices.use_cuda_graphs()


def test_structured_latents_have_the_bits_of_those_without_graphs(captured):
    with cuda_target():
        generator = SlatGenerator.from_preset("tiny", vm=compile_model(slat_generator.preset("tiny")))
    config = generator.config
    coords = np.unique(np.random.default_rng(0).integers(0, config.resolution, (20, 3)), axis=0)
    coords = np.concatenate([np.zeros((len(coords), 1)), coords], axis=1).astype("int32")
    noise = normal(1, len(coords), config.in_channels)

    def sample():
        return generator.sample(coords, normal(2, 1, 3, config.cond_channels), noise, **STEPS)

    expected = without_graphs(sample)
    assert sample().tobytes() == expected.tobytes()
    assert sum(each.graphs for each in captured) == 2


def test_structures_have_the_bits_of_those_without_graphs(captured):
    with cuda_target():
        flow = StructureFlow(case_ss_flow.compiled(module()), CONFIG)

    def sample():
        return flow.sample(LATENTS, COND, rescale_t=1.0, **STEPS)

    expected = without_graphs(sample)
    assert {name: x.tobytes() for name, x in sample().items()} == {name: x.tobytes() for name, x in expected.items()}
    assert sum(each.graphs for each in captured) == 2
