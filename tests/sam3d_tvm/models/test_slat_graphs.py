"""Steps of the sampler of the structured-latent generator as CUDA graphs, on the emulated device."""

import numpy as np

from sam3d_tvm.models.slat_generator import SlatGenerator, preset, run
from sam3d_tvm.models.slat_generator.network import compile_model
from sam3d_tvm.sampler import Guidance
from sparse_ops import devices
from tests.cuda_device import cuda_graphs, cuda_target


def test_samples_have_the_bits_of_those_without_graphs(monkeypatch):
    config = preset("tiny")
    rng = np.random.default_rng(0)
    coords = np.unique(rng.integers(0, config.resolution, (20, 3)), axis=0)
    coords = np.concatenate([np.zeros((len(coords), 1)), coords], axis=1).astype("int32")
    cond = rng.standard_normal((1, 3, config.cond_channels)).astype("float32")
    noise = rng.standard_normal((len(coords), config.in_channels)).astype("float32")
    made, make = [], run.Captured

    def noted(*args, **options):
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(run, "Captured", noted)
    guidance = Guidance(strength=2.0, interval=(0.0, 500.0))  # some steps with two branches, some with one
    with cuda_graphs():
        with cuda_target():
            generator = SlatGenerator.from_preset("tiny", vm=compile_model(config))
        outs = []
        for on in (True, False):
            devices.use_cuda_graphs(on)
            outs.append(generator.sample(coords, cond, noise, steps=6, guidance=guidance))
            devices.use_cuda_graphs(True)
    assert outs[0].tobytes() == outs[1].tobytes()
    assert sorted(each.graphs for each in made) == [0, 0, 1, 1]
