"""The picture of voxels: what hides what, where colours come from, the same bytes again."""

import io

import numpy as np
import pytest

from sam3d_tvm.occupancy import demo_occupancy
from sam3d_tvm.splat import render
from sam3d_tvm.splat.render import latent_colours, voxel_picture


def rows(xyz, batch=0):
    xyz = np.asarray(xyz, np.int32).reshape(-1, 3)
    return np.pad(xyz, ((0, 0), (1, 0)), constant_values=batch)


def flat(coords, channels=8):
    """Latents without any variation: every voxel is grey."""
    return np.ones((len(coords), channels), np.float32)


def differs_from_background(picture):
    empty = voxel_picture(rows([]), flat(rows([])), picture.width)
    return (np.asarray(picture) != np.asarray(empty)).any(axis=2)


def png(picture):
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def test_the_nut_is_drawn_with_its_hole_inside_the_margins():
    coords = demo_occupancy()
    latents = np.sin(coords[:, 1:] @ np.linspace(-0.2, 0.2, 24).reshape(3, 8)).astype(np.float32)
    picture = voxel_picture(coords, latents)
    assert picture.size == (800, 800) and picture.mode == "RGB"
    drawn = differs_from_background(picture)
    assert 0.3 < drawn.mean() < 0.6
    down, right = np.nonzero(drawn)
    assert min(down.min(), right.min(), 799 - down.max(), 799 - right.max()) >= 30
    assert max(np.ptp(down), np.ptp(right)) > 600
    assert png(picture) == png(voxel_picture(coords, latents))
    order = np.random.default_rng(0).permutation(len(coords))
    shuffled = voxel_picture(coords[order], latents[order])
    assert np.abs(np.asarray(picture, int) - np.asarray(shuffled, int)).max() <= 1  # sums in another order


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_solid_cube_shows_no_gap(count):
    coords = rows(np.stack(np.meshgrid(*[range(count)] * 3), axis=-1))
    picture = voxel_picture(coords, flat(coords), size=97)
    drawn = differs_from_background(picture)
    for line in [*drawn, *drawn.T]:
        assert np.count_nonzero(np.diff(line.astype(int), prepend=0, append=0)) in (0, 2)  # a convex outline
    assert len(np.unique(np.asarray(picture)[drawn], axis=0)) < 400  # three faces, and blends at the outline


def test_the_nearer_voxel_hides_the_farther():
    axis_of_sight = rows([[5, 5, 5], [4, 4, 4]])
    latents = np.float32([[0.0], [1.0]])
    near = np.asarray(voxel_picture(axis_of_sight, latents, 200))[100, 100]
    far = np.asarray(voxel_picture(axis_of_sight, 1 - latents, 200))[100, 100]
    assert near[0] < far[0] - 50


def brute_force(xyz, axes, low, shape):
    """For each pixel of a canvas, the voxel and the face seen there, -1 if none: every pixel against every face."""
    seen = np.full(shape, -1)
    nearest = np.full(shape, -np.inf)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = x + 2.0**-27, y + 2.0**-15  # off the sides of all faces
    sight = np.cross(axes[:, 0], axes[:, 1])
    sight = sight * np.sign(sight.sum())  # what every pixel looks along, towards the viewer
    for voxel, place in enumerate(xyz):
        for axis in range(3):
            normal, first, second = np.roll(np.eye(3), -axis, axis=0)
            origin = (place + normal) @ axes - low
            basis = np.stack([first @ axes, second @ axes], axis=1)
            a, b = np.einsum("ij,jhw->ihw", np.linalg.inv(basis), np.stack([x - origin[0], y - origin[1]]))
            point = (place + normal)[:, None, None] + first[:, None, None] * a + second[:, None, None] * b
            depth = np.einsum("i,ihw->hw", sight, point)
            closer = (a > 0) & (a < 1) & (b > 0) & (b < 1) & (depth > nearest + 1e-6)
            seen[closer], nearest[closer] = voxel + axis * len(xyz), depth[closer]
    return seen


def test_painting_equals_a_search_of_every_pixel(monkeypatch):
    xyz = np.unique(np.random.default_rng(1).integers(0, 6, (60, 3)), axis=0)
    axes = render._axes(xyz, 120)
    low, high = render._outline(xyz, axes)
    width, height = high - low
    expected = brute_force(xyz, axes, low, (height, width))
    # Each voxel and face in a colour of its own, with the lights and the scaling taken away.
    monkeypatch.setattr(render, "OCCLUSION", 0.0)
    monkeypatch.setattr(render, "DARKEST", 0.0)
    monkeypatch.setattr(render, "LIGHT", np.array([1.0, 0.5, 0.25]))
    colours = np.zeros((len(xyz), 3))
    colours[:, 0] = 1
    colours[:, 1] = (np.arange(len(xyz)) * 4) / 255  # divisible by all lights
    picture = np.asarray(render._drawn(xyz, colours, 120, 120), int)
    top, left = (120 - height) // 2, (120 - width) // 2
    window = picture[top : top + height, left : left + width]
    axis = np.where(expected < 0, 0, expected // len(xyz))
    voxel = expected % len(xyz)
    red, green = np.rint(255 * np.array([1.0, 0.5, 0.25]))[axis], voxel * 4 // np.array([1, 2, 4])[axis]
    shown = expected >= 0
    np.testing.assert_array_equal(window[shown][:, :2], np.stack([red, green], axis=-1)[shown])
    assert (window[~shown][:, 2] > 200).all() and (window[shown][:, 2] == 0).all()


def test_stencils_tile():
    rng = np.random.default_rng(0)
    for a, b in rng.integers(-9, 10, (50, 2, 2)):
        det = abs(a[0] * b[1] - a[1] * b[0])
        if det == 0:
            continue
        stencil = render._parallelogram(a, b)
        assert len(stencil) == det  # as many pixels as its area
        tiles = [stencil + i * a + j * b for i in range(3) for j in range(3)]
        assert len(np.unique(np.concatenate(tiles), axis=0)) == 9 * det


def test_colours_are_principal_components():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    scores = rng.standard_normal((500, 8)) * [9, 5, 3, 1, 0.5, 0.1, 0.1, 0.1]
    colours = latent_colours((scores @ axes.T + 7).astype(np.float32))
    assert colours.shape == (500, 3) and colours.min() == 0 and colours.max() == 1
    for i in range(3):
        assert abs(np.corrcoef(colours[:, i], scores[:, i])[0, 1]) > 0.97
    # The signs of the axes that the latents were made with leave no trace.
    flip = np.array([-1, 1, -1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(latent_colours((scores * flip) @ (axes * flip).T), latent_colours(scores @ axes.T))


@pytest.mark.parametrize(
    ("latents", "expected"),
    [
        (np.zeros((0, 8)), np.zeros((0, 3))),
        (np.ones((1, 8)), [[0.5] * 3]),
        (np.full((4, 8), 1e30), [[0.5] * 3] * 4),
        (np.float32([[0], [1], [2]]), [[0, 0.5, 0.5], [0.5, 0.5, 0.5], [1, 0.5, 0.5]]),
        (np.float64([[0, 0], [1e-300, 0]]), [[0, 0.5, 0.5], [1, 0.5, 0.5]]),
        (np.float32([[0]] * 999 + [[1]]), [[0, 0.5, 0.5]] * 999 + [[1, 0.5, 0.5]]),
    ],
)
def test_colours_of_few_channels_rows_or_values(latents, expected):
    np.testing.assert_allclose(latent_colours(latents), expected, atol=1e-7)


def test_a_grid_finer_than_the_picture_is_coarsened():
    xyz = np.stack(np.meshgrid(range(0, 4000, 8), range(0, 4000, 8), [0]), axis=-1).reshape(-1, 3) - 2000
    coords = rows(xyz)
    latents = (coords[:, 1:2] >= 0).astype(np.float32)
    drawn = differs_from_background(picture := voxel_picture(coords, latents, 64))
    assert drawn.any()
    channel = np.asarray(picture)[drawn][:, 0]
    assert channel.min() < 60 and channel.max() > 240  # both halves keep their colour


@pytest.mark.parametrize("size", [16, 33, 2048])
def test_sizes_and_far_corners(size):
    limit = render.COORD_LIMIT - 1
    coords = rows([[limit, limit, limit], [-limit, -limit, -limit], [limit, -limit, 0]], batch=3)
    picture = voxel_picture(coords, flat(coords), size)
    assert picture.size == (size, size) and differs_from_background(picture).any()


GOOD = rows([[0, 0, 0], [1, 2, 3]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"coords": GOOD.astype(np.int64)}, r"coords: expected int32 \[N, 4\], given int64 \[2, 4\]"),
        ({"coords": GOOD[:, 1:]}, r"coords: expected int32 \[N, 4\], given int32 \[2, 3\]"),
        ({"coords": GOOD.tolist()}, "coords: expected a numpy array, given list"),
        ({"coords": GOOD[[0, 1, 1]]}, "latents: expected 3 rows as coords, given 2"),
        ({"coords": GOOD[[1, 1]]}, r"coords: expected every row once, given \[0, 1, 2, 3\] again in row 1"),
        ({"coords": GOOD + np.int32([[0], [1]])}, "coords: expected rows of one batch element, given 2 of them"),
        (
            {"coords": GOOD + np.int32([0, 0, 0, 2**20])},
            r"coords: expected values within .* \[0, 0, 0, 1048576\] in row 0",
        ),
        ({"coords": GOOD * np.int32(-(2**31))}, "coords: expected values within"),
        ({"latents": np.ones((2, 8), np.int32)}, r"latents: expected floats \[N, C\], given int32 \[2, 8\]"),
        ({"latents": np.ones((2, 0), np.float32)}, r"latents: expected floats \[N, C\], given float32 \[2, 0\]"),
        (
            {"latents": np.float32([[1, 2], [3, np.nan]])},
            r"latents: expected finite values, given \[3.0, nan\] in row 1",
        ),
        ({"size": 15}, "size: expected an integer from 16 to 2048, given 15"),
        ({"size": 800.0}, "size: expected an integer from 16 to 2048, given 800.0"),
    ],
)
def test_bad_arguments(change, says):
    with pytest.raises(ValueError, match=says):
        voxel_picture(**{"coords": GOOD, "latents": flat(GOOD), **change})
