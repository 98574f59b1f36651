"""From a depth model's output to a map of points: as the public code has it, given the points that its network made."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from sam3d_tvm.checks import Failure
from sam3d_tvm.models.moge.focal import view_plane
from sam3d_tvm.models.moge.infer import DepthMap, infer
from sam3d_tvm.notices import Notice
from sam3d_tvm.photo.pointmaps import as_intrinsics, axes_seen
from tests import DATA
from tests.golden.runner import read
from tests.tolerance import assert_close

GOLDEN = DATA / "golden" / "moge_infer.safetensors"
CALLS = {"sam3d": "sam3d", "default": "sam3d", "fov": "sam3d", "batch": "batch"}  # and where the points of their network are
RANGE = (12, 40)
STEPS = 4.0  # roundings behind a value: of the shift, the focal length, their product


@dataclass
class Given:
    """A model that returns what it was given, and remembers what it was asked."""

    points: np.ndarray
    raw: np.ndarray
    asked: list = field(default_factory=list)

    @property
    def config(self):
        return self

    num_tokens_range = RANGE
    mask_threshold = 0.5

    def forward(self, image, num_tokens):
        self.asked.append(num_tokens)
        return self.points, self.raw


def camera(height=30, width=40, focal=1.2, shift=0.5):
    """What a model makes of what a camera sees, a corner of it sky."""
    u, v = view_plane(height, width)
    z = np.random.default_rng(0).uniform(1, 4, (height, width))
    points = np.stack([u[None] * z / focal, v[:, None] * z / focal, z - shift], -1).astype(np.float32)
    raw = np.ones((height, width), np.float32)
    raw[:5, :7] = 0.1
    return Given(points, raw)


def photo(height=30, width=40):
    return np.full((3, height, width), 0.5, np.float32)


@pytest.fixture(scope="module")
def golden():
    return read(GOLDEN)


@pytest.mark.parametrize("call", CALLS)
def test_the_result_of_the_public_code(golden, call):
    tensors, config = golden
    options, tokens = config["calls"][call]["arguments"], config["calls"][call]["num_tokens"]
    points, raw = (tensors[f"mid.{CALLS[call]}.{name}"] for name in ("points_affine", "mask_raw"))
    for i in range(len(points)):
        model = Given(points[i], raw[i])
        found = infer(model, np.zeros((3, *raw[i].shape), np.float32), **options)
        assert model.asked == [tokens]
        for name in ("points", "depth", "intrinsics", "mask_prob"):
            expected = tensors[f"out.{call}.{name}"]
            expected = expected if config["calls"][call]["single"] else expected[i]
            assert_close(getattr(found, name), expected, STEPS, name=name)
            assert getattr(found, name).dtype == np.float32
        expected = tensors[f"out.{call}.mask"]
        np.testing.assert_array_equal(found.mask, (expected if config["calls"][call]["single"] else expected[i]).astype(bool))


def test_a_camera_is_found():
    found = infer(camera(), photo())
    assert found.size == (40, 30)
    # f is relative to half the diagonal of 30 x 40, which is 25 pixels.
    assert found.pixel_intrinsics[0, 0] == pytest.approx(1.2 * 25, rel=1e-3)
    assert found.pixel_intrinsics[1, 1] == pytest.approx(1.2 * 25, rel=1e-3)
    np.testing.assert_allclose(found.pixel_intrinsics[:2, 2], (19.5, 14.5))
    assert found.fov_x == pytest.approx(np.degrees(2 * np.arctan(20 / 30)), rel=1e-3)
    rows, columns = np.nonzero(found.mask)
    projected = found.points[found.mask] @ found.pixel_intrinsics.T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], np.stack([columns, rows], -1), atol=1e-3)


def test_pixel_intrinsics_are_those_that_depth_is_read_with():
    found = infer(camera(), photo())
    with pytest.warns(Notice, match="taken as fractions"):
        read_back = as_intrinsics(found.intrinsics, found.size)
    np.testing.assert_allclose(read_back, found.pixel_intrinsics)


@pytest.mark.parametrize("force", [True, False])
def test_a_known_field_of_view_is_kept(force):
    found = infer(camera(), photo(), fov_x=50, force_projection=force)
    assert found.fov_x == pytest.approx(50, rel=1e-6)


def test_points_are_on_the_rays_of_their_pixels_or_where_the_model_has_them():
    model = camera()
    model.points[..., :2] *= np.float32(1.1)
    model.points[..., 0] += np.random.default_rng(1).normal(0, 0.1, (30, 40)).astype(np.float32)
    forced, free = infer(model, photo()), infer(model, photo(), force_projection=False)
    np.testing.assert_array_equal(free.points[free.mask][:, :2], model.points[free.mask][:, :2])
    np.testing.assert_array_equal(forced.depth, free.depth)
    assert np.abs(forced.points[forced.mask] - free.points[free.mask]).max() > 0.01


def test_sky_is_infinite_unless_asked_for():
    found, all_of_it = infer(camera(), photo()), infer(camera(), photo(), apply_mask=False)
    np.testing.assert_array_equal(found.mask, all_of_it.mask)
    assert np.isposinf(found.points[~found.mask]).all() and np.isposinf(found.depth[~found.mask]).all()
    assert np.isfinite(all_of_it.points).all() and np.isfinite(all_of_it.depth).all()
    np.testing.assert_allclose(found.mask_prob[0, 0], 1 / (1 + np.exp(-0.1)), rtol=1e-6)


def test_the_model_keeps_its_arrays():
    model = camera()
    points, raw = model.points.copy(), model.raw.copy()
    for force in (True, False):
        infer(model, photo(), force_projection=force)
    np.testing.assert_array_equal(model.points, points)
    np.testing.assert_array_equal(model.raw, raw)


def test_the_pointmap_is_in_the_axes_of_the_pipeline():
    found = infer(camera(), photo(), force_projection=False)
    pointmap = found.pointmap
    assert pointmap.dtype == np.float32 and pointmap.flags.c_contiguous and pointmap.shape == (3, 30, 40)
    assert np.isnan(pointmap[:, ~found.mask]).all()
    np.testing.assert_array_equal(pointmap[:, found.mask].T, found.points[found.mask] * [-1, -1, 1])
    assert axes_seen(pointmap) == (-1, -1, 1)


def test_a_pixel_with_one_component_that_is_not_finite_has_no_point():
    points = np.zeros((2, 2, 3), np.float32)
    points[0, 1, 2] = np.inf
    ones = np.ones((2, 2), np.float32)
    pointmap = DepthMap(points, ones, ones > 0, ones, np.eye(3, dtype=np.float32)).pointmap
    assert np.isnan(pointmap[:, 0, 1]).all() and np.isfinite(pointmap).sum() == 9


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 40),
        ({"resolution_level": 0}, 12),
        ({"resolution_level": 3}, 21),
        ({"num_tokens": 7}, 7),
        ({"num_tokens": 9000}, 9000),
    ],
)
def test_levels_of_resolution(options, tokens):
    model = camera()
    infer(model, photo(), **options)
    assert model.asked == [tokens]


def test_a_photo_without_a_camera_is_told():
    model = camera()
    model.points[...] = np.float32([0, 0, 1])
    with pytest.raises(Failure, match=r"depth: no focal length is found for this photo .* give the field of view \(--fov"):
        infer(model, photo())
    assert infer(model, photo(), fov_x=60).fov_x == pytest.approx(60)


def test_mirrored_points_are_told():
    model = camera()
    model.points[..., :2] *= -1
    with pytest.raises(Failure, match="no focal length is found"):
        infer(model, photo())


def test_a_photo_of_sky_goes_on_with_a_notice():
    model = camera()
    model.raw[...] = 0
    with pytest.warns(Notice, match="sees a surface at 0 of its samples"):
        found = infer(model, photo())
    assert np.isnan(found.pointmap).all() and found.intrinsics[0, 0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((3, 4, 5))}, r"image: expected float32 \[3, H, W\], given float64 \[3, 4, 5\]"),
        ({"image": np.zeros((4, 5, 3), np.float32)}, r"image: expected float32 \[3, H, W\]"),
        ({"image": np.zeros((3, 0, 5), np.float32)}, r"image: expected float32 \[3, H, W\]"),
        ({"image": "photo.png"}, "given str"),
        ({"image": np.full((3, 4, 5), np.nan, np.float32)}, "image: expected values in 0..1, given NaN"),
        ({"fov_x": 0}, "fov_x: expected degrees above 0 and below 180, given 0"),
        ({"fov_x": 180.0}, "fov_x: expected degrees above 0"),
        ({"fov_x": np.nan}, "fov_x: expected degrees above 0"),
        ({"fov_x": True}, "fov_x: expected degrees above 0"),
        ({"fov_x": "60"}, "fov_x: expected degrees above 0"),
        ({"resolution_level": 9.5}, "resolution_level: expected a number from 0 to 9, given 9.5"),
        ({"resolution_level": None}, "resolution_level: expected a number from 0 to 9"),
        ({"num_tokens": 0}, "num_tokens: expected an integer of at least 1"),
    ],
)
def test_what_is_refused(change, message):
    model = camera()
    with pytest.raises(ValueError, match=message):
        infer(model, **{"image": photo()} | change)
    assert model.asked == []
