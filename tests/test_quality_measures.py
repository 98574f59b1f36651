"""Measures of quality on cases whose values are known."""

import numpy as np
import pytest

from benchmarks.quality_measures import (
    chamfer_distance,
    elevation,
    f_score,
    filled,
    mesh_points,
    psnr,
    rotation_error,
    ssim,
    surface_points,
    voxel_iou,
)
from sam3d_tvm.models.structure_decoder.voxels import prune
from sam3d_tvm.splat.cameras import orbit

SQUARE = np.float32([[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [9, 9, 9]])
TRIANGLES = np.int32([[0, 1, 2], [0, 2, 3]])


def ball(centre, radius, resolution=16):
    """bool [R, R, R]."""
    at = np.stack(np.meshgrid(*[np.arange(resolution)] * 3, indexing="ij"), -1)
    return ((at - centre) ** 2).sum(-1) < radius**2


def coords_of(grid):
    return np.pad(np.argwhere(grid), ((0, 0), (1, 0))).astype(np.int32, order="C")


def random(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("grid", [ball((8, 8, 8), 6), ball((0, 8, 15), 7), np.ones((16, 16, 16), bool), ball((8, 8, 8), 0)])
def test_what_was_pruned_is_filled_again(grid):
    kept = prune(coords_of(grid))
    assert len(kept) < grid.sum() or not grid.any()
    np.testing.assert_array_equal(filled(kept, 16), grid)


def test_an_open_hollow_stays_empty():
    cup = ball((8, 8, 8), 6) & ~ball((8, 8, 8), 4)
    closed = filled(coords_of(cup), 16)
    assert closed[8, 8, 8]
    cup[8, 8, 8:] = False  # a hole in the wall
    assert not filled(coords_of(cup), 16)[8, 8, 8]


def test_voxel_iou_by_hand():
    first, second = np.zeros((2, 4, 4, 4), bool)
    first[:2], second[1:3] = True, True
    assert voxel_iou(first, second) == 1 / 3
    assert voxel_iou(first, first) == 1 and voxel_iou(first, ~first) == 0
    assert voxel_iou(np.zeros_like(first), np.zeros_like(first)) == 1


def test_points_of_a_mesh_are_even_over_its_area():
    points = mesh_points(SQUARE, TRIANGLES, 40_000, random())
    assert points.shape == (40_000, 3) and (points[:, 2] == 0).all() and points.min() >= 0 and points.max() <= 2
    counts = np.histogram2d(points[:, 0], points[:, 1], 4, [[0, 2], [0, 2]])[0]
    assert np.abs(counts - 2500).max() < 5 * 2500**0.5  # five deviations of a count
    assert len(mesh_points(SQUARE, TRIANGLES[:0], 10, random())) == 0
    np.testing.assert_array_equal(points, mesh_points(SQUARE, TRIANGLES, 40_000, random()))


@pytest.mark.parametrize("slope", [1.0, 0.5, 2.0])
def test_points_of_a_surface_lie_on_it_evenly(slope):
    """A sphere of radius 0.3, whose caps of equal height have equal areas, by a distance that need not be exact."""
    points = surface_points(lambda at: slope * (np.linalg.norm(at - 0.05, axis=1) - 0.3), np.full(3, 0.4), 20_000, random())
    off = points - 0.05
    assert np.abs(np.linalg.norm(off, axis=1) - 0.3).max() < 2e-3
    for axis in range(3):
        counts = np.histogram(off[:, axis], 5, (-0.3, 0.3))[0]
        assert np.abs(counts - 4000).max() < 6 * 4000**0.5
    with pytest.raises(ValueError, match="distance: expected a surface"):
        surface_points(lambda at: np.ones(len(at)), np.full(3, 0.4), 10, random())


def test_distances_of_parallel_grids():
    """All nearest points are straight opposite."""
    first = np.stack([*np.meshgrid(np.arange(10.0), np.arange(10.0)), np.zeros((10, 10))], -1).reshape(-1, 3)
    second = first + np.array([0, 0, 0.25])
    assert chamfer_distance(first, second) == pytest.approx(0.25)
    assert f_score(first, second, 0.26) == 1 and f_score(first, second, 0.24) == 0
    assert chamfer_distance(first, first) == 0 and f_score(first, first, 0.0) == 1


def test_precision_and_recall_are_both_in_it():
    true = np.arange(4.0)[:, None] * [1, 0, 0]
    found = np.concatenate([true[:2], [[9.0, 0, 0]]])  # two of three are right, and two of four are found
    assert f_score(found, true, 0.1) == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert chamfer_distance(found, true) == pytest.approx((6 / 3 + 3 / 4) / 2)
    nothing = np.zeros((0, 3))
    assert f_score(nothing, true, 1.0) == f_score(true, nothing, 1.0) == 0
    assert chamfer_distance(nothing, true) == chamfer_distance(true, nothing) == np.inf


def test_psnr_by_hand():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black + np.uint8(51), black) == pytest.approx(20 * np.log10(5))
    assert psnr(black, black) == np.inf and psnr(black, ~black) == 0


def test_ssim_of_flat_pictures_is_that_of_their_means():
    """Without variance the second factor is 1."""
    pictures = [np.full((20, 30, 3), value, np.uint8) for value in (100, 150)]
    c1 = (0.01 * 255) ** 2
    assert ssim(*pictures) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_ssim_of_a_picture_and_its_negative():
    """Equal means and variances: the covariance has the other sign."""
    noise = np.uint8(255) * random().integers(0, 2, (64, 64, 1), np.uint8) * np.ones(3, np.uint8)
    assert ssim(noise, noise) == 1
    assert -1 < ssim(noise, ~noise) < -0.8
    assert ssim(noise, random(1).permutation(noise.reshape(-1, 3)).reshape(noise.shape)) == pytest.approx(0, abs=0.1)


def test_ssim_by_another_way():
    """Windows one by one, weighed by the outer product of the Gaussian."""
    first, second = random().integers(0, 256, (2, 13, 12, 3)).astype(np.uint8)
    line = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    weights = np.outer(line, line) / np.outer(line, line).sum()
    x, y = first @ np.array([0.299, 0.587, 0.114]), second @ np.array([0.299, 0.587, 0.114])
    values = []
    for row in range(3):
        for column in range(2):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            m, n = (weights * a).sum(), (weights * b).sum()
            v, w, c = (weights * (a - m) ** 2).sum(), (weights * (b - n) ** 2).sum(), (weights * (a - m) * (b - n)).sum()
            top = (2 * m * n + 2.55**2) * (2 * c + 7.65**2)
            values.append(top / ((m * m + n * n + 2.55**2) * (v + w + 7.65**2)))
    assert ssim(first, second) == pytest.approx(np.mean(values), rel=1e-10)


@pytest.mark.parametrize("shapes", [((11, 11, 3), (11, 12, 3)), ((10, 40, 3), (10, 40, 3))])
def test_pictures_that_have_no_ssim(shapes):
    with pytest.raises(ValueError, match="found: expected a picture as"):
        ssim(*(np.zeros(shape, np.uint8) for shape in shapes))


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 30.0, 179.0, 180.0])
def test_rotation_error_is_the_angle(degrees):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    base = orbit(3, 20)[1].rotation
    assert rotation_error(base @ turn, base) == pytest.approx(degrees, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("degrees", [-10.0, 0.0, 35.0, 89.0])
def test_elevation_is_that_of_the_camera(degrees):
    """A pose's matrix takes rows into the camera's axes left, up and away; a `Camera` has rows right, down and forward."""
    for camera in orbit(3, degrees):
        rotation = (camera.rotation * [[-1], [-1], [1]]).T
        assert elevation(rotation) == pytest.approx(degrees)
