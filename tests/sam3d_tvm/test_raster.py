"""Pictures of Gaussians by kernels against those of numpy, and what points see in them."""

import numpy as np
import pytest

from sam3d_tvm.splat.cameras import Camera, orbit
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians
from sam3d_tvm.splat.picture import splat_picture
from sam3d_tvm.splat.raster import DEPTH, SEEN, Lookup, Raster, depth_of, over
from tests.sparse_ops.walk import with_threads

AHEAD = Camera(np.eye(3), np.zeros(3), 1.0)  # right x, down y, forward z


def cloud(count: int, seed: int = 0) -> Gaussians:
    """Gaussians of all sizes, some behind the cameras, some thin, some that cannot be seen."""
    rng = np.random.default_rng(seed)
    return Gaussians(
        xyz=rng.normal(0, 0.4, (count, 3)),
        features_dc=rng.uniform(-2, 2, (count, 3)),
        opacity_logit=rng.normal(0, 3, count),
        log_scaling=np.log(rng.uniform(0.002, 0.1, (count, 3))),
        quaternion=rng.normal(size=(count, 4)),
    )


def disc(center, color, logit=6.0, width=0.5) -> Gaussians:
    """A flat one that looks along z."""
    dc = (np.float32([color]) - 0.5) / CONSTANT_HARMONIC
    return Gaussians(np.float32([center]), dc, [logit], np.log([[width, width, 0.001]]), [[1.0, 0, 0, 0]])


@pytest.mark.parametrize("side", [16, 80, 256])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_pictures_are_those_of_numpy(count, side):
    gaussians = cloud(count)
    raster = Raster(gaussians)
    for camera in (*orbit(2, radius=2.0), Camera(np.eye(3), np.zeros(3))):  # the last one is in the middle of them
        found = over(raster.draw(camera, side).numpy())
        expected = np.asarray(splat_picture(gaussians, camera, side), float) / 255
        # Half a step of rounding; at the rim of an ellipse, where it ends at 3 standard deviations or 1/255, float32 may decide
        # otherwise than float64 for single pixels.
        error = np.abs(found - expected).max(-1)
        assert np.mean(error > 0.5 / 255 + 1e-4) < 0.002, error.max()
        assert error.max() < 0.05


def test_what_is_seen_behind_and_how_far_things_are():
    gaussians = Gaussians.merged([disc([0, 0, 4], [0, 1, 0]), disc([0, 0, 2], [1, 0, 0], logit=0.0)])
    picture = Raster(gaussians).draw(AHEAD, 64).numpy()
    near, far = 0.5, 1 / (1 + np.exp(-6))
    middle = picture[:, 32, 32]
    np.testing.assert_allclose(middle[SEEN], (1 - near) * (1 - far), atol=0.002)
    np.testing.assert_allclose(middle[:3], [near, (1 - near) * far, 0], atol=0.01)
    np.testing.assert_allclose(middle[DEPTH], 2 * near + 4 * (1 - near) * far, rtol=0.01)
    np.testing.assert_allclose(depth_of(picture)[32, 32], middle[DEPTH] / (1 - middle[SEEN]), rtol=1e-4)
    assert np.isnan(depth_of(Raster(cloud(0)).draw(AHEAD, 16).numpy())).all()


def test_the_same_bits_at_any_number_of_threads_and_again():
    gaussians, camera = cloud(2000), orbit(1)[0]

    def both():
        raster, points = Raster(gaussians), gaussians.xyz
        lookup = Lookup(points, -points, 0.5, 0.1)
        lookup.add(camera, picture := raster.draw(camera, 128), 0.1)
        return picture.numpy().tobytes() + lookup.sums.tobytes()

    assert with_threads(1, both) == with_threads(2, both) == both()


def test_points_see_the_colour_in_front_of_them_where_the_depth_is_theirs():
    gaussians = Gaussians.merged([disc([0.4, 0.2, 2], [1, 0.5, 0]), disc([-0.4, 0, 3], [0, 0, 1])])
    picture = Raster(gaussians).draw(AHEAD, 128)
    away, towards = [0.0, 0, 1], [0, 0, -1.0]
    points = np.array([[0.4, 0.2, 2.0], [0.4, 0.2, 2.3], [0.4, 0.2, 2], [-0.4, 0, 3], [0, 0, -2], [9, 9, 2], [0.4, 0.2, 2]])
    normals = np.array([towards, towards, away, towards, towards, towards, [1, 0, -1.0]])
    lookup = Lookup(points, normals, 0.5, 0.1)
    lookup.add(AHEAD, picture, 0.1)
    sums = lookup.sums
    # Behind the disc, turned away, behind the camera, beside the picture: nothing.
    assert (sums[:, 3] > 0).tolist() == [True, False, False, True, False, False, True]
    np.testing.assert_allclose(sums[0, :3] / sums[0, 3], [1, 0.5, 0], atol=0.01)
    np.testing.assert_allclose(sums[3, :3] / sums[3, 3], [0, 0, 1], atol=0.01)
    ray = points[0] / np.linalg.norm(points[0])
    np.testing.assert_allclose(sums[0, 3], ray[2] ** 2, rtol=1e-3)  # the square of the cosine
    np.testing.assert_allclose(sums[6, 3], (ray @ [-1, 0, 1]) ** 2 / 2, rtol=1e-2)
    lookup.add(AHEAD, picture, 0.1)
    np.testing.assert_allclose(lookup.sums, 2 * sums, rtol=1e-6)


def test_between_pixels_colours_are_linear():
    # Two halves of the picture in two colours: their boundary is crossed in the width of a pixel or so.
    left = disc([-1.0, 0, 2], [1, 1, 1], width=0.2)
    picture = Raster(Gaussians.merged([left, disc([0, 0, 2.01], [0, 0, 0], width=5.0)])).draw(AHEAD, 64)
    values = picture.numpy()
    column = np.arange(8, 24) + 0.25  # between the middles of pixels
    points = np.stack([(column + 0.5) / 64 * 4 - 2 + 0, np.full(16, 0.5 / 64 * 4), np.full(16, 2.0)], -1)
    points[:, 0] = ((column + 0.5) / 64 - 0.5) * 2
    points[:, 1] = 0.5 / 64 * 2  # the middle of row 32
    lookup = Lookup(points, np.tile([0, 0, -1.0], (16, 1)), 0.5, 0.1)
    lookup.add(AHEAD, picture, 0.5)
    colors = values[0, 32] / (1 - values[SEEN, 32])
    expected = 0.75 * colors[8:24] + 0.25 * colors[9:25]
    np.testing.assert_allclose(lookup.sums[:, 0] / lookup.sums[:, 3], expected, atol=1e-3)
    assert np.ptp(expected) > 0.5
