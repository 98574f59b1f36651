"""The structure decoder: PyTorch module against upstream's results, compiled component against the module, bad input.

The golden case `ss_decoder` compares the compiled component with upstream's results.
"""

import functools
from collections import Counter

import numpy as np
import pytest
import torch

from sam3d_tvm.models.example_torch import seeded
from sam3d_tvm.models.structure_decoder import PRESETS, StructureDecoder, StructureDecoderConfig, preset
from sam3d_tvm.models.structure_decoder.network_torch import StructureDecoderModel
from sam3d_tvm.models.structure_decoder.voxels import downsample, occupied_coords, prune
from sparse_ops.deploy.from_torch import port_component
from sparse_ops.transform import recognize
from tests import DATA
from tests.golden import case_ss_decoder
from tests.golden.runner import read
from tests.sam3d_tvm.tiny import normal
from tests.sparse_ops.transform.graphs import arguments, calls, ops
from tests.sparse_ops.transform.torch_models import imported
from tests.tolerance import assert_close

CONFIG = StructureDecoderConfig(
    resolution=3, latent_channels=5, channels=(12, 6), num_res_blocks=1, num_res_blocks_middle=1
)  # compiles sooner than "tiny"


@functools.cache
def module() -> StructureDecoderModel:
    return seeded(lambda: StructureDecoderModel(CONFIG))


@pytest.fixture(scope="module")
def decoder() -> StructureDecoder:
    return StructureDecoder(port_component(module(), (torch.from_numpy(latent(1)),), "structure_decoder"), CONFIG)


def latent(batch: int) -> np.ndarray:
    return normal(0, batch, CONFIG.tokens, CONFIG.latent_channels)


@torch.inference_mode()
@pytest.mark.parametrize("form", ["tokens", "latent"])
def test_module_against_upstream(form):
    tensors, config = read(DATA / "golden" / "ss_decoder.safetensors")
    model, given = case_ss_decoder.module_of(tensors, config), torch.from_numpy(tensors[f"in.{form}"])
    depths = case_ss_decoder.depths_of(model.config)
    taps = model.taps(given)
    assert {f"mid.{name}" for name in taps} - {"mid.logits"} == {name for name in tensors if name.startswith("mid.")}
    for name, found in taps.items():
        expected = tensors["out.logits" if name == "logits" else f"mid.{name}"]
        assert_close(found.numpy(), expected, depths[name], name=name)
    assert (model(given) == taps["logits"]).all()


@pytest.mark.parametrize("size", PRESETS)
def test_sizes(size):
    config = preset(size)
    with torch.device("meta"):
        logits = StructureDecoderModel(config)(torch.empty(2, config.tokens, config.latent_channels))
    assert logits.shape == (2, 1, *[config.grid] * 3)
    assert config.grid == {"tiny": 16, "full": 64}[size]


def test_all_layers_are_kernels_of_ours():
    """Convolutions with bias and residual, norms with the activation; of the rest one copy for each pixel shuffle."""
    tokens = torch.from_numpy(latent(1))
    graph = recognize()(imported(module(), (tokens,), whole=True))
    assert Counter(op for op in ops(graph) if op != "reshape") == {
        "sparse_ops.conv3d": 1 + 2 * 3 + 1 + 1,
        "sparse_ops.channel_layer_norm": 2 * 3 + 1,
        "permute_dims": 1 + 1,  # one brings the channels of the tokens to the front
    }
    assert {str(norm.attrs["activation"]) for norm in calls(graph, "sparse_ops.channel_layer_norm")} == {"silu"}
    given = [arguments(conv) for conv in calls(graph, "sparse_ops.conv3d")]
    assert all("bias" in names for names in given) and sum("residual" in names for names in given) == 3


@torch.inference_mode()
def test_compiled_against_the_module(decoder):
    given = latent(2)
    found = decoder.logits(given)
    assert found.dtype == np.float32
    expected = module()(torch.from_numpy(given)).numpy()
    assert_close(found, expected, case_ss_decoder.depths_of(CONFIG)["logits"])
    assert (decoder.logits(given[1:])[0] == found[1]).all()  # whatever else is in the batch
    assert (decoder.logits(torch.from_numpy(given)) == found).all()


def test_coords_are_those_of_the_logits(decoder):
    given = latent(2)
    logits = decoder.logits(given)
    threshold = float(np.quantile(logits, 0.1))  # nearly full: some voxels are buried
    coords = occupied_coords(logits, threshold)
    pruned = prune(coords)
    assert 0 < len(pruned) < len(coords)
    for limit in (len(pruned), 20):
        expected, factors = downsample(pruned, limit)
        found, found_factors = decoder.coords(given, threshold, max_voxels=limit)
        assert (found == expected).all() and (found_factors == factors).all()
    assert factors.tolist() == [2, 2]
    assert (decoder.coords(given, threshold, prune_distance=0)[0] == coords).all()


def test_without_voxels(decoder):
    coords, factors = decoder.coords(latent(2), threshold=1e9)
    assert coords.shape == (0, 4) and factors.tolist() == [1, 1]
    assert decoder.logits(latent(0)).shape == (0, 1, *[CONFIG.grid] * 3)
    coords, factors = decoder.coords(latent(0))
    assert coords.shape == (0, 4) and factors.shape == (0,)


def test_bad_input(decoder):
    with pytest.raises(ValueError, match=r"shape_latent: expected float32 \[any, 27, 5\], given float32 \[1, 27, 4\]"):
        decoder.logits(normal(0, 1, 27, 4))
    with pytest.raises(ValueError, match="prune_distance: expected an integer of at least 0, given -1"):
        decoder.coords(latent(1), prune_distance=-1)
    with pytest.raises(ValueError, match=r"component: expected one input \[1, 64, 8\] as the config says, given .*27, 5"):
        StructureDecoder(decoder.component, preset("tiny"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 0}, "resolution: expected an integer of at least 1, given 0"),
        ({"latent_channels": 2.5}, "latent_channels: expected an integer of at least 1, given 2.5"),
        ({"channels": ()}, "number of channels: expected an integer of at least 1, given 0"),
        ({"channels": (8, 0)}, r"channels\[1\]: expected an integer of at least 1, given 0"),
        ({"num_res_blocks": -1}, "num_res_blocks: expected an integer of at least 0, given -1"),
        ({"num_res_blocks_middle": True}, "num_res_blocks_middle: expected an integer of at least 0, given True"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        StructureDecoderConfig(**{"resolution": 4, "latent_channels": 8, "channels": (8, 4)} | change)


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset: expected one of 'tiny', 'full', given 'huge'"):
        preset("huge")
