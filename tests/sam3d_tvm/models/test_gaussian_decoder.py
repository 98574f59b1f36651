"""The Gaussian decoder: against PyTorch and spconv, any size and batch, the same bits, bad input.

The golden case `slat_decoder_gs` compares it with upstream's results.
"""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from benchmarks import decoders
from benchmarks.decoder_reference import GaussianReference
from sam3d_tvm.models.gaussian_decoder import (
    PRESETS,
    GaussianDecoder,
    GaussianDecoderConfig,
    GaussianModel,
    parameter_shapes,
    preset,
    seeded_state,
)
from sam3d_tvm.splat.gaussians import offset_perturbation
from sparse_ops.deploy.from_nn import component_from_nn
from tests.golden import case_slat_decoder_gs
from tests.golden.runner import check_tensors
from tests.sam3d_tvm.tiny import normal, voxels
from tests.sparse_ops.walk import with_threads
from tests.tolerance import assert_close, compare

# Several windows along every axis, a width that is no multiple of 6, an unequal number of shifted blocks.
CONFIG = replace(preset("tiny"), resolution=8, model_channels=20, num_blocks=3, mlp_ratio=1.5, window_size=3)
NARROW_ERROR = 0.02  # relative L2 that bfloat16 may be off


def make(config: GaussianDecoderConfig, **options) -> GaussianDecoder:
    model = GaussianModel(config)
    return GaussianDecoder(component_from_nn(model, model.specs(), "decoder", seeded_state(config, 3), **options), config)


@pytest.fixture(scope="module")
def decoder() -> GaussianDecoder:
    return make(CONFIG)


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (60, 1), (150, 3)])
def test_against_the_reference(decoder, rows, batch):
    coords, feats = voxels(rows, rows, batch), normal(1, rows, 8)
    expected = GaussianReference.of(CONFIG, seeded_state(CONFIG, 3))(torch.from_numpy(coords), torch.from_numpy(feats))
    found = decoder(coords, feats)
    assert found.dtype == np.float32 and found.shape == (rows, CONFIG.out_channels)
    assert_close(found, expected.numpy(), case_slat_decoder_gs.depths_of(CONFIG, coords)["out_feats"])


@pytest.mark.parametrize("perturb", [True, False])
def test_golden_files_of_several_batch_elements(perturb):
    """Other widths, windows and numbers of Gaussians; an element in the middle has no voxel."""
    options = preset("tiny").representation_config | {"num_gaussians": 3, "perturb_offset": perturb, "voxel_size": 1.25}
    config = replace(CONFIG, num_blocks=1 + perturb, representation_config=options)
    coords, feats, state = voxels(90, 4, 2) * np.int32([2, 1, 1, 1]), normal(6, 90, 8), seeded_state(config, 5)
    raw = GaussianReference.of(config, state)(torch.from_numpy(coords), torch.from_numpy(feats)).numpy()
    tensors = {f"state.{name}": np.asarray(value) for name, value in state.items()}
    tensors |= {"in.x": feats, "in.coords": coords, "mid.out_feats": raw}
    place, representation = offset_perturbation(config.representation), config.representation
    for element in (0, 2):
        rows = coords[:, 0] == element
        found = case_slat_decoder_gs.decoded(coords[rows], raw[rows], config.resolution, representation, place)
        tensors |= {f"out.{element}.{name}": value for name, value in found.items()}
        for name, value in found.items():
            tensors[f"out.{name}"] = np.concatenate([tensors[f"out.{name}"], value]) if element else value
    file = asdict(config)
    found = case_slat_decoder_gs.run(tensors, file)
    report = check_tensors("slat_decoder_gs__other", case_slat_decoder_gs.CASE, found, tensors, file)
    assert report.ok and len(report.rows) == 1 + 3 * 12, report.table()
    assert len(tensors["out.ply"]) == 90 * 3


def test_without_voxels(decoder):
    assert decoder(voxels(0), normal(0, 0, 8)).shape == (0, CONFIG.out_channels)


def test_elements_of_a_batch_do_not_see_each_other(decoder):
    coords, feats = voxels(120, batch=2), normal(2, 120, 8)
    together = decoder(coords, feats)
    for b in range(2):
        rows = coords[:, 0] == b
        np.testing.assert_array_equal(decoder(coords[rows] * np.int32([0, 1, 1, 1]), feats[rows]), together[rows])


def test_the_same_bits_with_any_threads(decoder):
    coords, feats = voxels(200), normal(3, 200, 8)
    one, two = (with_threads(count, lambda: decoder(coords, feats)).tobytes() for count in (1, 2))
    assert one == two == decoder(coords, feats).tobytes()


def test_bfloat16_is_close(decoder):
    coords, feats = voxels(100), normal(4, 100, 8)
    found, expected = make(CONFIG, precision="bfloat16")(coords, feats), decoder(coords, feats)
    assert found.dtype == np.float32
    assert 1e-4 < compare(found, expected).l2_error < NARROW_ERROR


def test_torch_tensors_are_taken(decoder):
    coords, feats = voxels(5), normal(5, 5, 8)
    np.testing.assert_array_equal(decoder(torch.from_numpy(coords), torch.from_numpy(feats)), decoder(coords, feats))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": np.zeros((2, 3), np.int32)}, r"coords: expected int32 \[any, 4\], given int32 \[2, 3\]"),
        ({"coords": np.zeros((2, 4), np.int64)}, r"coords: expected int32 \[any, 4\], given int64 \[2, 4\]"),
        ({"coords": np.int32([[0, 1, 2, 8]] * 2)}, "coords: expected z from 0 to 7, given 8 in row 0"),
        ({"coords": np.int32([[0, 1, -1, 0]] * 2)}, "coords: expected y from 0 to 7, given -1 in row 0"),
        ({"coords": np.int32([[1, 1, 1, 1], [0, 1, 1, 1]])}, "ascending by batch index, given 0 after 1 in row 1"),
        ({"coords": np.int32([[0, 1, 1, 1]] * 2)}, r"coords: expected every voxel once, given \[0, 1, 1, 1\] again in row 1"),
        ({"feats": np.zeros((3, 8), np.float32)}, r"feats: expected float32 \[2, 8\], given float32 \[3, 8\]"),
        ({"feats": np.zeros((2, 7), np.float32)}, r"feats: expected float32 \[2, 8\], given float32 \[2, 7\]"),
        ({"feats": np.zeros((2, 8))}, r"feats: expected float32 \[2, 8\], given float64 \[2, 8\]"),
        ({"feats": np.full((2, 8), np.nan, np.float32)}, "feats: expected finite values, given 16 that are not"),
    ],
)
def test_bad_input(decoder, change, message):
    with pytest.raises(ValueError, match=message):
        decoder(**{"coords": voxels(2), "feats": normal(0, 2, 8)} | change)


def test_a_component_of_other_sizes(decoder):
    with pytest.raises(ValueError, match=r"component: expected inputs of \[\(5,\), \(4,\)\] columns as the config says, given"):
        GaussianDecoder(decoder.component, replace(CONFIG, latent_channels=5))


def test_presets():
    assert {name: preset(name).out_channels for name in PRESETS} == {"tiny": 56, "full": 448, "full_4": 56}
    shapes = parameter_shapes(preset("full"))
    assert shapes["blocks.11.attn.to_qkv.weight"] == (2304, 768) and shapes["blocks.11.mlp.mlp.0.weight"] == (3072, 768)
    assert len(shapes) == 4 + 12 * 8
    with pytest.raises(ValueError, match="preset: expected one of 'tiny', 'full', 'full_4', given 'huge'"):
        preset("huge")


VALUES = {
    "resolution": 64,
    "model_channels": 768,
    "latent_channels": 8,
    "num_blocks": 12,
    "num_heads": 12,
    "mlp_ratio": 4,
    "attn_mode": "swin",
    "window_size": 8,
    "use_fp16": True,
    "representation_config": preset("full").representation_config,
}  # as a checkpoint's file says it


def test_configs_from_dicts():
    assert replace(GaussianDecoderConfig.from_dict(VALUES), use_fp16=False) == preset("full")
    assert GaussianDecoderConfig.from_dict({**VALUES, "num_heads": None, "num_head_channels": 96}).heads == 8
    with pytest.raises(ValueError, match="config: representation_config missing"):
        GaussianDecoderConfig.from_dict({name: value for name, value in VALUES.items() if name != "representation_config"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "config: expected names among resolution, .*, given colour too"),
        ({"resolution": 0}, "resolution: expected an integer of at least 1, given 0"),
        ({"window_size": 2.5}, "window_size: expected an integer of at least 1, given 2.5"),
        ({"num_blocks": -1}, "num_blocks: expected an integer of at least 0, given -1"),
        ({"num_heads": 5}, "num_heads: expected a divisor of model_channels 768, given 5"),
        ({"mlp_ratio": 0}, "mlp_ratio: expected a positive number, given 0"),
        ({"attn_mode": "full"}, "attn_mode: expected 'swin', given 'full'"),
        ({"pe_mode": "rope"}, "pe_mode: expected 'ape', given 'rope'"),
        ({"qk_rms_norm": True}, "qk_rms_norm: expected False, given True"),
        ({"representation_config": None}, "representation_config: expected values by name, given None"),
        ({"representation_config": {"num_gaussians": 4}}, "representation_config: .* missing"),
        ({"representation_config": VALUES["representation_config"] | {"num_gaussians": 0}}, "num_gaussians: expected"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        GaussianDecoderConfig.from_dict(VALUES | change)


def test_arithmetic_is_counted():
    """By hand, for two voxels that share a window, unless it is shifted by half of its width."""
    coords, config = np.int32([[0, 0, 0, 0], [0, 1, 0, 0]]), replace(CONFIG, num_blocks=2, window_size=2)
    linear = 2 * 2 * (4 * 20 * 20 + 2 * 20 * 30)
    assert decoders.transformer_flops(config, coords) == 2 * linear + 2 * 2 * 20 * (4 + 2)
    assert decoders.gaussian_flops(config, coords) == decoders.transformer_flops(config, coords) + 2 * 2 * 20 * 56


def test_seeded_parameters():
    for seed in (0, 1):
        first, again = (seeded_state(CONFIG, seed) for _ in range(2))
        assert first.keys() == parameter_shapes(CONFIG).keys()
        assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(seeded_state(CONFIG, 0)["out_layer.bias"], first["out_layer.bias"])
    with pytest.raises(ValueError, match="seed: expected an integer of at least 0, given -1"):
        seeded_state(CONFIG, -1)
