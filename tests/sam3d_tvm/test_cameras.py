"""Cameras: which way they look, where points land in the picture, boxes that fit into it."""

import numpy as np
import pytest

from sam3d_tvm.splat.cameras import MARGIN, Camera, orbit, orbit_box

EPSILON = 1e-12  # some roundings of float64 values about 1


def test_the_first_camera_of_an_orbit_stands_in_front_with_x_to_the_right_and_z_up():
    camera = orbit(4, elevation_degrees=0, radius=2.0)[0]
    assert np.allclose(camera.position, (0, -2, 0), atol=EPSILON)
    pixels, depth = camera.project(np.array([[0, 0, 0], [0.1, 0, 0], [0, 0, 0.1], [0, 0.5, 0]]), 200)
    assert np.allclose(depth, [2, 2, 2, 2.5], atol=EPSILON)
    step = 200 * camera.focal * 0.1 / 2
    assert np.allclose(pixels, [[100, 100], [100 + step, 100], [100, 100 - step], [100, 100]], atol=200 * EPSILON)


@pytest.mark.parametrize("elevation", [-90, -20, 0, 20, 90])
def test_all_cameras_of_an_orbit_look_at_the_centre_from_one_distance(elevation):
    center = np.array([0.3, -2.0, 1.0])
    cameras = orbit(5, elevation, center, radius=3.0, focal=1.1)
    for camera in cameras:
        assert np.allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=EPSILON)
        assert np.isclose(np.linalg.det(camera.rotation), 1, atol=EPSILON)
        pixels, depth = camera.project(center[None], 64)
        assert np.allclose(pixels, 32, atol=64 * EPSILON) and np.allclose(depth, 3, atol=EPSILON)
        assert np.isclose(camera.position[2] - center[2], 3 * np.sin(np.deg2rad(elevation)), atol=EPSILON)
        assert camera.rotation[0, 2] == 0 and camera.rotation[1, 2] <= EPSILON  # right is level, down is not up
    bearings = np.unwrap([np.arctan2(camera.rotation[0, 1], camera.rotation[0, 0]) for camera in cameras])
    assert np.allclose(np.diff(bearings), 2 * np.pi / 5)  # counterclockwise


@pytest.mark.parametrize("low, high", [((-0.5,) * 3, (0.5,) * 3), ((3, -9, 0), (4, -8.9, 7)), ((0, 0, 0), (0, 1, 0))])
@pytest.mark.parametrize("elevation", [-30, 0, 89])
def test_a_box_fits_into_every_view_and_fills_one(low, high, elevation):
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    extents = []
    for camera in orbit_box(low, high, 6, elevation):
        pixels, depth = camera.project(corners, 100)
        assert (depth > 0).all()
        extents.append(np.abs(pixels - 50).max())
    assert np.isclose(max(extents), 50 - 100 * MARGIN)


def test_a_box_without_extent_is_in_front_of_the_camera():
    for camera in orbit_box((1, 1, 1), (1, 1, 1), 2):
        pixels, depth = camera.project(np.ones((1, 3)), 10)
        assert np.allclose(pixels, 5) and depth > 0


def test_points_that_are_not_in_front_have_no_pixel():
    camera = Camera(np.eye(3), np.zeros(3))
    pixels, depth = camera.project(np.array([[1, 1, -1], [1, 1, 0], [0, 0, 1]]), 10)
    assert depth.tolist() == [-1, 0, 1]
    assert np.isnan(pixels[:2]).all() and pixels[2].tolist() == [5, 5]
    assert [len(part) for part in camera.project(np.zeros((0, 3)), 10)] == [0, 0]


@pytest.mark.parametrize(
    "message, call",
    [
        ("rotation: expected numbers .3, 3.", lambda: Camera(np.eye(2), np.zeros(3))),
        ("rotation: expected an orthonormal", lambda: Camera(2 * np.eye(3), np.zeros(3))),
        ("rotation: expected an orthonormal", lambda: Camera(-np.eye(3), np.zeros(3))),
        ("position: expected numbers .3.", lambda: Camera(np.eye(3), "abc")),
        ("position: expected finite", lambda: Camera(np.eye(3), [0, 0, np.nan])),
        ("focal: expected a finite number above 0, given 0", lambda: Camera(np.eye(3), np.zeros(3), 0)),
        ("focal: expected a finite number above 0, given inf", lambda: orbit_box((0,) * 3, (1,) * 3, 4, focal=np.inf)),
        ("count: expected an integer of at least 1", lambda: orbit(0)),
        ("elevation_degrees: expected a number from -90 to 90, given 91", lambda: orbit(1, 91)),
        ("elevation_degrees: expected finite", lambda: orbit(1, np.nan)),
        ("elevation_degrees: expected numbers", lambda: orbit(1, "high")),
        ("radius: expected a finite number above 0, given -1", lambda: orbit(1, radius=-1)),
        ("center: expected numbers .3.", lambda: orbit(1, center=(0, 0))),
        ("low: expected a corner that is nowhere above high", lambda: orbit_box((0, 0, 1), (1, 1, 0), 1)),
        ("points: expected numbers .N, 3.", lambda: orbit(1)[0].project(np.zeros((4, 2)), 10)),
        ("points: expected finite", lambda: orbit(1)[0].project(np.full((4, 3), np.inf), 10)),
        ("size: expected an integer of at least 1", lambda: orbit(1)[0].project(np.zeros((4, 3)), 0)),
    ],
)
def test_bad_arguments_are_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
