"""The picture of Gaussians: against a loop over pixels, what hides what, what is not in view."""

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from sam3d_tvm.splat import picture as module
from sam3d_tvm.splat.cameras import orbit, orbit_box
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians
from sam3d_tvm.splat.picture import contact_sheet, splat_picture

FRONT = orbit(1, elevation_degrees=0, radius=2.0)[0]  # looks along y, x to the right
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def blobs(centres, colours, opacity=0.9, deviation=0.05):
    """Round Gaussians."""
    count = len(centres)
    opacity = np.broadcast_to(opacity, count)
    return Gaussians(
        xyz=np.reshape(centres, (count, 3)),
        features_dc=(np.reshape(colours, (count, 3)) - 0.5) / CONSTANT_HARMONIC,
        opacity_logit=np.log(opacity / (1 - opacity)),
        log_scaling=np.full((count, 3), np.log(deviation)),
        quaternion=np.tile([1, 0, 0, 0], (count, 1)),
    )


def some(count, seed=0, deviation=0.1):
    """Gaussians of all shapes and opacities in and around the unit cube."""
    random = np.random.default_rng(seed)
    return Gaussians(
        xyz=random.normal(size=(count, 3)) * 0.5,
        features_dc=random.normal(size=(count, 3)),
        opacity_logit=random.normal(size=count) * 4,
        log_scaling=random.normal(size=(count, 3)) + np.log(deviation),
        quaternion=random.normal(size=(count, 4)),
    )


def naive(gaussians, camera, size, background):
    """Every pixel against every Gaussian, nearest first, as the docstring says it."""
    centres, depth = camera.project(gaussians.xyz, size)
    turn = Rotation.from_quat(gaussians.quaternion[:, [1, 2, 3, 0]]).as_matrix()
    pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2) + 0.5
    seen, picture = np.ones(len(pixels)), np.zeros((len(pixels), 3))
    for i in np.argsort(depth):
        if depth[i] < module.NEAR:
            continue
        z = depth[i]
        x, y = np.clip((centres[i] / size - 0.5) * 2, -1.3, 1.3) / 2 / camera.focal * z
        jacobian = size * camera.focal * np.array([[1 / z, 0, -x / z**2], [0, 1 / z, -y / z**2]])
        world = turn[i] @ np.diag(gaussians.scaling[i].astype(np.float64) ** 2) @ turn[i].T
        projected = jacobian @ camera.rotation @ world @ camera.rotation.T @ jacobian.T
        filtered = projected + 0.3 * np.eye(2)
        away = pixels - centres[i]
        distance = np.einsum("pi,ij,pj->p", away, np.linalg.inv(filtered), away)
        strength = gaussians.opacity[i] * np.sqrt(max(np.linalg.det(projected), 0) / np.linalg.det(filtered))
        alpha = np.minimum(strength * np.exp(-distance / 2), 0.99)
        alpha[(alpha < 1 / 255) | (distance > 9)] = 0
        picture += (seen * alpha)[:, None] * gaussians.colors[i]
        seen *= 1 - alpha
    picture += seen[:, None] * np.array(background) / 255
    return 255 * picture.reshape(size, size, 3)


@pytest.mark.parametrize("count, deviation", [(1, 0.2), (30, 0.1), (300, 0.02), (300, 0.5)])
@pytest.mark.parametrize("chunk", [1, 1000, module.CHUNK])
def test_as_a_loop_over_pixels(monkeypatch, count, deviation, chunk):
    """From within the cloud and outside: Gaussians small and larger than the picture, behind the camera and beside the view."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    gaussians = some(count, count, deviation)
    for radius in (0.3, 2.0):
        camera = orbit(3, 35, radius=radius)[2]
        picture = np.asarray(splat_picture(gaussians, camera, 20, (10, 200, 90)), np.float64)
        expected = naive(gaussians, camera, 20, (10, 200, 90))
        # A rounding to integers, and what is seen through a pixel that counts as opaque.
        assert np.abs(picture - expected).max() <= 0.5 + 255 * module.OPAQUE + 1e-3


def test_the_nearer_hides_the_farther_whatever_the_order():
    near, far = (0, -0.2, 0), (0, 0.2, 0)
    for order in (slice(None), slice(None, None, -1)):
        gaussians = blobs([near, far][order], [RED, BLUE][order], opacity=0.98, deviation=0.2)
        red, green, blue = splat_picture(gaussians, FRONT, 51).getpixel((25, 25))
        assert red > 245 and green < 5 and blue < 15


def test_what_is_transparent_shows_what_is_behind():
    gaussians = blobs([(0, -0.2, 0), (0, 0.2, 0)], [RED, BLUE], opacity=0.5, deviation=0.5)
    middle = np.array(splat_picture(gaussians, FRONT, 201).getpixel((100, 100)))
    assert np.abs(middle - 255 * np.array([0.5 + 0.25, 0.25, 0.25 + 0.25])).max() <= 1


def test_places_in_the_picture():
    gaussians = blobs([(-0.3, 0, 0.3), (0.3, 0, 0)], [RED, BLUE])
    picture = np.asarray(splat_picture(gaussians, FRONT, 100), int)
    pixels, _ = FRONT.project(gaussians.xyz, 100)
    for (right, down), hidden in zip(pixels.astype(int), ([1, 2], [0, 1]), strict=True):
        assert (picture[down, right, hidden] < 50).all() and picture[down, right].max() > 250
    assert (picture[100 - int(pixels[0, 1]), int(pixels[0, 0])] == 255).all()


@pytest.mark.parametrize("centre", [(0, -2.5, 0), (0, -2, 0), (0, -2 + 0.0009, 0), (50, 0, 0), (0, 0, -50)])
def test_what_is_not_in_view_is_not_drawn(centre):
    picture = splat_picture(blobs([centre], [RED]), FRONT, 32, (1, 2, 3))
    assert picture.getcolors() == [(32 * 32, (1, 2, 3))]


def test_no_gaussians_and_transparent_ones_leave_the_background():
    for gaussians in (Gaussians.merged([]), blobs([(0, 0, 0)], [RED], opacity=1e-30)):
        assert splat_picture(gaussians, FRONT, 8).getcolors() == [(64, (255, 255, 255))]


def test_a_small_gaussian_takes_no_more_light_than_its_size():
    """The sum of alpha over pixels is the integral of the unfiltered Gaussian."""
    pixel = 2 / (100 * FRONT.focal)
    for deviation in (0.5, 1.0, 3.0):  # pixels
        gaussians = blobs([(0, 0, 0)], [(0, 0, 0)], opacity=0.9, deviation=deviation * pixel)
        taken = (255 - np.asarray(splat_picture(gaussians, FRONT, 100), np.float64)[..., 0]).sum() / 255
        assert abs(taken / (0.9 * 2 * np.pi * deviation**2) - 1) < 0.05  # 1% lies beyond 3 standard deviations


def test_a_single_gaussian_is_seen_from_where_its_box_is():
    gaussians = blobs([(0.3, 0, 0)], [RED], deviation=0.001)
    for camera in orbit_box(*gaussians.bounds, 3):
        red, green, blue = splat_picture(gaussians, camera, 51).getpixel((25, 25))
        assert red == 255 and green == blue < 50


def test_enormous_gaussians_are_drawn():
    gaussians = blobs([(0, 0, 0)], [RED], opacity=0.9, deviation=np.exp(40))
    assert splat_picture(gaussians, FRONT, 8, (0, 0, 0)).getcolors() == [(64, (230, 0, 0))]


def test_equal_input_gives_equal_pictures():
    gaussians = some(500)
    cameras = orbit_box(*gaussians.bounds, 2)
    first, again, other = (splat_picture(gaussians, camera, 64).tobytes() for camera in (cameras[0], *cameras))
    assert first == again != other


def test_a_contact_sheet_has_pictures_in_rows():
    colours = [(i, 0, 0) for i in range(5)]
    sheet = contact_sheet([Image.new("RGB", (10, 6), colour) for colour in colours], 3)
    assert sheet.size == (3 * 10 + 2 * module.GAP, 2 * 6 + module.GAP)
    step_x, step_y = 10 + module.GAP, 6 + module.GAP
    assert [sheet.getpixel((i % 3 * step_x + 5, i // 3 * step_y + 3)) for i in range(5)] == colours
    assert sheet.getpixel((2 * step_x + 5, step_y + 3)) == sheet.getpixel((11, 3)) == (255, 255, 255)
    assert contact_sheet([Image.new("RGB", (10, 6))], 3).size == (10, 6)


@pytest.mark.parametrize(
    "message, call",
    [
        ("size: expected an integer of at least 1", lambda: splat_picture(some(1), FRONT, 0)),
        ("size: expected an integer up to 4096, given 5000", lambda: splat_picture(some(1), FRONT, 5000)),
        ("background: expected three integers in 0..255", lambda: splat_picture(some(1), FRONT, 8, (0, 0, 256))),
        ("background: expected three integers in 0..255", lambda: splat_picture(some(1), FRONT, 8, "red")),
        ("columns: expected an integer of at least 1", lambda: contact_sheet([Image.new("RGB", (1, 1))], 0)),
        ("pictures: expected one or more of equal size, given 0", lambda: contact_sheet([], 2)),
        (
            "pictures: expected one or more of equal size, given 2",
            lambda: contact_sheet([Image.new("RGB", (1, n)) for n in (1, 2)], 2),
        ),
    ],
)
def test_bad_arguments_are_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
