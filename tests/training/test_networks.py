"""The networks for training: each is the compiled component of the same parameters, and its gradients reach all of them."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sam3d_tvm.models import gaussian_decoder, mesh_decoder, slat_generator  # noqa: E402
from sam3d_tvm.models.slat_decoder import compile_decoder  # noqa: E402
from tests.sam3d_tvm.tiny import normal, voxels  # noqa: E402
from training.networks import GaussianDecoderNetwork, MeshDecoderNetwork, SlatGeneratorNetwork  # noqa: E402
from training.networks.layers import SubmanifoldConvolution  # noqa: E402
from training.networks.sites import Sites  # noqa: E402

# The sizes of the tiny model that ships, so that the tests of all share what is compiled.
SLAT = slat_generator.SlatConfig(
    64, 8, 64, 64, 8, num_blocks=3, num_heads=2, mlp_ratio=3, patch_size=4, io_block_channels=(16, 32), qk_rms_norm=True
)
GAUSSIAN = replace(gaussian_decoder.preset("tiny"), model_channels=32, num_blocks=2, num_heads=2, mlp_ratio=2)
MESH = replace(mesh_decoder.preset("tiny"), num_blocks=1)
CLOSE = 1e-5  # relative L2 of two ways to add up the same products in float32


def loaded(network, state):
    """The network with the parameters of `state`, of which none is missing or left over."""
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, strict=True)
    return network.eval()


def assert_near(found, expected):
    assert found.shape == expected.shape
    off = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert off < CLOSE, off


@pytest.mark.parametrize("batch", [1, 2])
def test_the_generator_is_the_compiled_one(batch):
    state = slat_generator.seeded_state(SLAT, 1)
    coords, x, cond = voxels(300, 1, batch, side=14), normal(2, 300, 8), normal(3, batch, 5, 64)
    model = slat_generator.SlatGenerator(SLAT, state)
    expected = model.velocity(x, np.float32(300), model.prepare(coords, cond))
    times = torch.full((batch,), 300.0)
    with torch.no_grad():
        found = loaded(SlatGeneratorNetwork(SLAT), state)(*map(torch.from_numpy, (coords, x)), times, torch.from_numpy(cond))
    assert_near(found.numpy(), expected)


@pytest.mark.parametrize(
    ("module", "config", "network", "compiled"),
    [
        (gaussian_decoder, GAUSSIAN, GaussianDecoderNetwork, "GaussianModel"),
        (mesh_decoder, MESH, MeshDecoderNetwork, "MeshModel"),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_decoders_are_the_compiled_ones(module, config, network, compiled, batch):
    state = module.seeded_state(config, 1)
    component = compile_decoder(getattr(module, compiled))(config, state, "decoder", "float32", None)
    decoder = getattr(module, compiled.replace("Model", "Decoder"))(component, config)
    coords, feats = voxels(150, 1, batch, side=14), normal(2, 150, 8)
    with torch.no_grad():
        found = loaded(network(config), state)(torch.from_numpy(coords), torch.from_numpy(feats))
    expected = decoder(coords, feats)
    if compiled == "MeshModel":
        np.testing.assert_array_equal(found[1].numpy(), expected[1])
        found, expected = found[0], expected[0]
    assert_near(found.numpy(), expected)


def test_every_parameter_is_learnt():
    torch.manual_seed(0)
    coords, feats = (torch.from_numpy(array) for array in (voxels(80, 1), normal(2, 80, 8)))
    time, cond = torch.tensor([400.0]), torch.randn(1, 5, 64)
    calls = {
        SlatGeneratorNetwork(SLAT): (coords, feats, time, cond),
        GaussianDecoderNetwork(GAUSSIAN): (coords, feats),
        MeshDecoderNetwork(MESH): (coords, feats),
    }
    for network, given in calls.items():
        for name, parameter in network.named_parameters():
            if name.endswith("gamma"):  # which the module that the models share leaves empty
                torch.nn.init.ones_(parameter)
        found = network(*given)
        (found[0] if isinstance(found, tuple) else found).square().sum().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not without, f"{type(network).__name__}: {without}"


def test_a_convolution_of_repeated_rows():
    """`of_upsampled` is the convolution of what was repeated, and so are its gradients."""
    torch.manual_seed(0)
    sites = Sites(torch.from_numpy(voxels(60, 1)), 8, 1)
    finer = sites.subdivided()
    for taps in (1, 3):
        layer = SubmanifoldConvolution(6, 5, taps)
        x = torch.randn(60, 6, requires_grad=True)
        short, long = layer.of_upsampled(x, finer), layer(x.repeat_interleave(8, 0), finer)
        assert_near(short.detach().numpy(), long.detach().numpy())
        toward, to = torch.randn(480, 5), (x, layer.weight, layer.bias)
        for one, other in zip(*(torch.autograd.grad(y, to, toward) for y in (short, long)), strict=True):
            assert_near(one.numpy(), other.numpy())


def test_other_taps_are_refused():
    with pytest.raises(ValueError, match="kernel_size: expected 1 or 3, given 2"):
        SubmanifoldConvolution(4, 4, 2)
