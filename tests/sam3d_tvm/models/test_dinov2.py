"""DINOv2 in both of its settings: how positions are resized, and what the config refuses."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam3d_tvm.models.condition_embedder import DINO_PRESETS
from sam3d_tvm.models.dinov2 import CUBIC, HUB, DinoV2Config, position_matrices
from sam3d_tvm.models.dinov2_torch import Block, DinoV2
from sam3d_tvm.models.example_torch import seeded
from tests.tolerance import assert_close

DINO = replace(DINO_PRESETS["tiny"], depth=1)
PLAIN = DinoV2Config(
    embed_dim=32,
    depth=1,
    num_heads=2,
    img_size=70,
    num_register_tokens=0,
    interpolate_antialias=False,
    interpolate_offset=0.1,
)


@pytest.mark.parametrize("img_size", [28, 56, 98])
def test_positions_are_resized_as_an_image(img_size):
    module = seeded(partial(DinoV2, replace(DINO, img_size=img_size), (4, 4)))
    grid = module.pos_embed[:, 1:].unflatten(1, (img_size // 14, -1)).permute(0, 3, 1, 2)  # [1, C, rows, columns]
    grid = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True).permute(0, 2, 3, 1).flatten(1, 2)
    positions = module.positions()
    assert_close(positions[:, 1:].numpy(), grid.numpy(), depth=2 * module.stored_grid)
    assert torch.equal(positions[:, :1], module.pos_embed[:, :1])


def test_first_token_of_a_block():
    block = seeded(partial(Block, 32, 2, 64, layer_scale=True))
    x = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(0))
    assert_close(block.first(x).numpy(), block(x)[:, :1].numpy(), depth=32)


def cubic(distance: float) -> float:
    """Keys' kernel with the slope CUBIC, piece by piece."""
    x, a = abs(distance), CUBIC
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 40), (5, 7), (4, 5), (6, 3)])
def test_positions_without_antialiasing(rows, columns):
    for matrix, new in zip(position_matrices(PLAIN, rows, columns), (rows, columns), strict=True):
        expected = np.zeros((new, 5))
        for i in range(new):
            place = (i + 0.5) * 5 / (new + 0.1) - 0.5
            for tap in range(-8, 16):
                expected[i, min(max(tap, 0), 4)] += cubic(place - tap)
        assert_close(matrix, expected.astype(np.float32), depth=4)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_positions_of_the_stored_grid_stay_as_they_are():
    for matrix in position_matrices(PLAIN, 5, 5):
        np.testing.assert_array_equal(matrix, np.eye(5))
    assert not np.array_equal(position_matrices(PLAIN, 5, 4)[0], np.eye(5))  # only where both sides are as many


def test_a_grid_that_is_known_is_one_that_calls_bring():
    """With and without registers: what a module with a grid of its own computes."""
    image = torch.rand(1, 3, 3 * 14, 4 * 14, generator=torch.Generator().manual_seed(0))
    for registers in (0, 4):
        config = replace(PLAIN, num_register_tokens=registers)
        fixed, free = seeded(partial(DinoV2, config, (3, 4))), seeded(partial(DinoV2, config))
        resampling = tuple(map(torch.from_numpy, position_matrices(config, 3, 4)))
        assert torch.equal(fixed(image), free(image, resampling))
        assert fixed(image).shape == (1, 1 + registers + 12, 32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"interpolate_offset": 1.0}, "interpolate_offset: expected a number from 0 to below 1, given 1.0"),
        ({"interpolate_antialias": True}, "interpolate_offset: expected 0 with interpolate_antialias, given 0.1"),
        ({"interpolate_antialias": 1}, "interpolate_antialias: expected True or False, given 1"),
        ({"img_size": 71}, "img_size: expected a multiple of patch_size 14, given 71"),
        ({"num_heads": 3}, "embed_dim: expected a multiple of num_heads 3, given 32"),
        ({"num_register_tokens": -1}, "num_register_tokens: expected an integer of at least 0, given -1"),
    ],
)
def test_a_config_that_does_not_fit(change, message):
    with pytest.raises(ValueError) as error:
        replace(PLAIN, **change)
    assert str(error.value) == message


def test_matrices_that_are_refused():
    with pytest.raises(ValueError, match=r"^rows: expected an integer of at least 1, given 0$"):
        position_matrices(PLAIN, 0, 3)
    with pytest.raises(ValueError, match=r"^config: expected one that interpolates positions without antialiasing$"):
        position_matrices(HUB["dinov2_vitl14_reg"], 2, 3)
