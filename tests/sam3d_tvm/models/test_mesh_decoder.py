"""The mesh decoder: against PyTorch and spconv, any size and batch, the same bits, bad input.

The golden cases `slat_decoder_mesh` and `mesh_subdivide_block` compare it with upstream's results.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import decoders
from benchmarks.decoder_reference import MeshReference
from sam3d_tvm.models.mesh_decoder import (
    PRESETS,
    MeshDecoder,
    MeshDecoderConfig,
    MeshModel,
    parameter_shapes,
    preset,
    seeded_state,
)
from sparse_ops.deploy.from_nn import component_from_nn
from tests.golden import case_slat_decoder_mesh
from tests.sam3d_tvm.tiny import normal, voxels
from tests.sparse_ops.walk import with_threads
from tests.tolerance import assert_close, compare
from tir_kernels.spec import subdivide

CONFIG = replace(preset("tiny"), resolution=8, model_channels=48, num_blocks=2, mlp_ratio=1.5, window_size=3, num_groups=3)
NARROW_ERROR = 0.02  # relative L2 that bfloat16 may be off


def make(config: MeshDecoderConfig, **options) -> MeshDecoder:
    model = MeshModel(config)
    return MeshDecoder(component_from_nn(model, model.specs(), "decoder", seeded_state(config, 3), **options), config)


@pytest.fixture(scope="module")
def decoder() -> MeshDecoder:
    return make(CONFIG)


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (40, 1), (90, 3)])
def test_against_the_reference(decoder, rows, batch):
    coords, feats = voxels(rows, rows, batch), normal(1, rows, 8)
    reference = MeshReference.of(CONFIG, seeded_state(CONFIG, 3))
    expected, fine = (array.numpy() for array in reference(torch.from_numpy(coords), torch.from_numpy(feats)))
    found, found_coords = decoder(coords, feats)
    assert found.dtype == np.float32 and found.shape == (64 * rows, CONFIG.out_channels)
    assert_close(found, expected, case_slat_decoder_mesh.depths_of(CONFIG, coords)["feats"])
    assert_close(found_coords, fine)
    assert_close(found_coords, subdivide.naive(subdivide.naive(coords, (2, 2, 2)), (2, 2, 2)))


def test_without_voxels(decoder):
    feats, coords = decoder(voxels(0), normal(0, 0, 8))
    assert feats.shape == (0, CONFIG.out_channels) and coords.shape == (0, 4)


def test_elements_of_a_batch_do_not_see_each_other(decoder):
    """Not even where one between has no rows: norms are taken over each by itself."""
    coords, feats = voxels(80, batch=2) * np.int32([2, 1, 1, 1]), normal(2, 80, 8)
    together, fine = decoder(coords, feats)
    for b in (0, 2):
        rows, fine_rows = coords[:, 0] == b, fine[:, 0] == b
        found, found_coords = decoder(coords[rows] * np.int32([0, 1, 1, 1]), feats[rows])
        np.testing.assert_array_equal(found, together[fine_rows])
        np.testing.assert_array_equal(found_coords[:, 1:], fine[fine_rows, 1:])


def test_the_same_bits_with_any_threads(decoder):
    coords, feats = voxels(60), normal(3, 60, 8)
    one, two = (with_threads(count, lambda: decoder(coords, feats)[0]).tobytes() for count in (1, 2))
    assert one == two == decoder(coords, feats)[0].tobytes()


def test_bfloat16_is_close(decoder):
    coords, feats = voxels(40), normal(4, 40, 8)
    (found, fine), (expected, _) = make(CONFIG, precision="bfloat16")(coords, feats), decoder(coords, feats)
    assert found.dtype == np.float32 and fine.max() < CONFIG.out_resolution
    assert 1e-4 < compare(found, expected).l2_error < NARROW_ERROR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": np.int32([[0, 1, 2, 8]] * 2)}, "coords: expected z from 0 to 7, given 8 in row 0"),
        ({"coords": np.int32([[0, 1, 1, 1]] * 2)}, r"coords: expected every voxel once, given \[0, 1, 1, 1\] again in row 1"),
        ({"feats": np.zeros((2, 7), np.float32)}, r"feats: expected float32 \[2, 8\], given float32 \[2, 7\]"),
        ({"feats": np.full((2, 8), np.inf, np.float32)}, "feats: expected finite values, given 16 that are not"),
    ],
)
def test_bad_input(decoder, change, message):
    with pytest.raises(ValueError, match=message):
        decoder(**{"coords": voxels(2), "feats": normal(0, 2, 8)} | change)


def test_a_component_of_other_sizes(decoder):
    with pytest.raises(ValueError, match=r"component: expected inputs of \[\(5,\), \(4,\)\] columns as the config says, given"):
        MeshDecoder(decoder.component, replace(CONFIG, latent_channels=5))


def test_presets():
    assert all(preset(name).out_channels == 101 and preset(name).out_resolution == 256 for name in PRESETS)
    assert preset("full").widths == (768, 192, 96)
    shapes = parameter_shapes(preset("full"))
    assert shapes["upsample.1.out_layers.0.conv.weight"] == (96, 3, 3, 3, 192)
    assert shapes["upsample.0.skip_connection.conv.weight"] == (192, 1, 1, 1, 768)
    assert replace(CONFIG, representation_config={"use_color": False}).out_channels == 53
    with pytest.raises(ValueError, match="preset: expected one of 'tiny', 'full', given 'huge'"):
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
    "representation_config": {"use_color": True},
}  # as a checkpoint's file says it


def test_configs_from_dicts():
    assert MeshDecoderConfig.from_dict(VALUES) == preset("full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_channels": 400, "num_heads": 4},
            "model_channels: expected a multiple of 256, so that .*, given 400",
        ),
        ({"num_groups": 0}, "num_groups: expected an integer of at least 1, given 0"),
        ({"representation_config": {}}, "representation_config: expected use_color, a bool, given {}"),
        ({"representation_config": {"use_color": 1}}, "representation_config: expected use_color, a bool, given"),
        ({"attn_mode": "full"}, "attn_mode: expected 'swin', given 'full'"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        MeshDecoderConfig.from_dict(VALUES | change)


def test_arithmetic_is_counted():
    """By hand: one voxel becomes a full cube of 2^3, then of 4^3, in which neighbours along an axis make 4, then 10 pairs."""
    first = 4**3 * (48 + 12) * 12 + 8 * 48 * 12
    second = 10**3 * (12 + 6) * 6 + 64 * 12 * 6
    config = replace(CONFIG, num_blocks=0)
    assert decoders.mesh_flops(config, np.zeros((1, 4), np.int32)) == 2 * (first + second + 64 * 6 * 101)


def test_seeded_parameters(decoder):
    """Norms have gains around 1, and all corners of all cubes are inside."""
    state = seeded_state(CONFIG, 0)
    assert state.keys() == parameter_shapes(CONFIG).keys()
    assert abs(np.asarray(state["upsample.0.act_layers.0.weight"]).mean() - 1) < 0.1
    feats, _ = decoder(voxels(80), normal(6, 80, 8))
    assert feats[:, :8].max() < 0 and feats[:, 53:].std() > 0.5
