"""Focal length and shift of point maps: those that the public code finds, those of cameras, and maps that have none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3d_tvm.models.moge.focal import least_squares, recover_focal_shift, samples_inside, view_plane
from tests import DATA
from tests.golden.runner import read

GOLDEN = DATA / "golden" / "moge_infer.safetensors"
AS_RECORDED = 1e-6  # relative: a few roundings of a float32, of u and v among them
SOLVER = ("plain", "large", "known", "far", "few")
CALLS = {"sam3d": "sam3d", "default": "sam3d", "batch": "batch"}  # and where their points are


@pytest.fixture(scope="module")
def golden():
    return read(GOLDEN)


def seen_by(focal, shift, shape=(40, 60), seed=0, noise=0.0):
    """Points float32 [H, W, 3] of a camera, with z before its shift."""
    rng = np.random.default_rng(seed)
    u, v = view_plane(*shape)
    z = rng.uniform(1, 4, shape)
    points = np.stack([u[None] * z / focal, v[:, None] * z / focal, z - shift], -1)
    return (points + noise * rng.normal(size=points.shape)).astype(np.float32)


def everywhere(points):
    return np.ones(points.shape[:2], bool)


@pytest.mark.parametrize("name", SOLVER)
def test_the_focal_length_and_the_shift_of_the_public_code(golden, name):
    tensors, _ = golden
    points, masks, known = (tensors.get(f"in.{name}.{key}") for key in ("points", "mask", "focal"))
    for i in range(len(points)):
        focal, shift = recover_focal_shift(points[i], masks[i].astype(bool), None if known is None else known[i])
        np.testing.assert_allclose(focal, tensors[f"out.{name}.focal"][i], rtol=AS_RECORDED)
        np.testing.assert_allclose(shift, tensors[f"out.{name}.shift"][i], rtol=AS_RECORDED)


@pytest.mark.parametrize("call", CALLS)
def test_those_of_a_models_points(golden, call):
    tensors, _ = golden
    points, raw = (tensors[f"mid.{CALLS[call]}.{name}"] for name in ("points_affine", "mask_raw"))
    for i in range(len(points)):
        focal, shift = recover_focal_shift(points[i], raw[i] > 0.5)
        np.testing.assert_allclose(focal, tensors[f"mid.{call}.focal"][i], rtol=AS_RECORDED)
        np.testing.assert_allclose(shift, tensors[f"mid.{call}.shift"][i], rtol=AS_RECORDED)


def test_it_stops_where_the_public_code_does_and_not_at_the_optimum(golden):
    tensors, config = golden
    exact = config["calls"]["sam3d"]["exact_shift"][0]
    assert abs(tensors["mid.sam3d.shift"][0] - exact) > 1e-3 * abs(exact)


@given(st.floats(0.5, 3), st.floats(-3, 0.8), st.integers(8, 200), st.integers(8, 200), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_camera_is_found(focal, shift, height, width, seed):
    points = seen_by(focal, shift, (height, width), seed)  # all in front of the camera before the shift too
    found = recover_focal_shift(points, everywhere(points))
    np.testing.assert_allclose(found, (focal, shift), rtol=1e-3, atol=1e-3)  # there is no noise: the sum goes to 0


@pytest.mark.parametrize("shape", [(1, 1000), (37, 53), (300, 4), (64, 64), (65, 129)])
def test_shapes_of_any_kind(shape):
    points = seen_by(1.2, 0.5, shape)
    focal, shift = recover_focal_shift(points, everywhere(points))
    assert focal == pytest.approx(1.2, rel=0.02) and shift == pytest.approx(0.5, abs=0.05)


def test_only_points_in_the_mask_count():
    points, mask = seen_by(1.2, 0.5), np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    expected = recover_focal_shift(points, mask)
    points[~mask] = np.nan
    assert recover_focal_shift(points, mask) == expected


def test_a_known_focal_length_is_kept():
    points = seen_by(1.2, 0.5)
    focal, shift = recover_focal_shift(points, everywhere(points), 1.2)
    assert focal == np.float32(1.2) and shift == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("known", [None, 1.7])
@pytest.mark.parametrize("count", [0, 1])
def test_too_few_points_have_no_shift(count, known):
    points, mask = seen_by(1.2, 0.5), np.zeros((40, 60), bool)
    mask[20, 30] = count
    assert samples_inside(mask) >= count
    mask = mask & (samples_inside(mask) < 2)
    assert recover_focal_shift(points, mask, known) == (np.float32(known or 1), 0)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((9, 9, 3), np.float32),
        np.ones((9, 9, 3), np.float32),
        np.full((9, 9, 3), 1e30, np.float32),
        -seen_by(1, 0.2),
        seen_by(1.0, 0.0, noise=100.0),
    ],
    ids=["zero", "one", "huge", "behind", "noise"],
)
def test_what_no_camera_sees_comes_to_an_end(points):
    focal, shift = recover_focal_shift(points, everywhere(points))
    assert isinstance(focal, np.float32) and isinstance(shift, np.float32)


def test_mirrored_points_have_a_negative_focal_length():
    points = seen_by(1.2, 0.5) * np.float32([-1, -1, 1])
    assert recover_focal_shift(points, everywhere(points))[0] < 0


def test_least_squares_stops_at_once_where_nothing_is_left():
    assert least_squares(lambda s: np.zeros(3)) == 0
    assert least_squares(lambda s: np.ones(3)) == 0


def test_least_squares_finds_what_is_far_away():
    assert least_squares(lambda s: np.array([s - 1e4])) == pytest.approx(1e4)


def test_least_squares_ends_in_front_of_a_wall():
    assert least_squares(lambda s: np.array([s - 3.0]) if s < 1 else np.array([np.nan])) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((4, 5, 3))}, r"points: expected float32 \[H, W, 3\], given float64"),
        ({"points": np.zeros((3, 4, 5), np.float32)}, r"points: expected float32 \[H, W, 3\]"),
        ({"points": None}, "given NoneType"),
        ({"mask": np.ones((4, 5), np.uint8)}, r"mask: expected bool \[4, 5\] as points have, given uint8"),
        ({"mask": np.ones((5, 4), bool)}, r"mask: expected bool \[4, 5\]"),
        ({"focal": -1.0}, "focal: expected a finite number above 0"),
        ({"focal": np.nan}, "focal: expected a finite number above 0"),
        ({"points": np.full((4, 5, 3), np.nan, np.float32)}, "points: expected finite points in the mask, given 4096 of 4096"),
    ],
)
def test_what_is_refused(change, message):
    arguments = {"points": np.zeros((4, 5, 3), np.float32), "mask": np.ones((4, 5), bool)} | change
    with pytest.raises(ValueError, match=message):
        recover_focal_shift(**arguments)
