"""Inputs of the generators: as PyTorch resizes the whole arrays, and what masks and point maps of all kinds give."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sam3d_tvm.notices import Notice
from sam3d_tvm.photo.preprocess import SIZE, mask_box, preprocess
from tests import DATA
from tests.golden.runner import check_file
from tests.tolerance import assert_close

ROUNDINGS = 3  # a byte as a float, and each of two passes of interpolation


def photo(height, width, box, seed=0, softest=128):
    """uint8 [H, W, 4] of noise, its mask too, inside of a box (top, bottom, left, right), bounds inclusive."""
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    mask = np.zeros((height, width), bool)
    mask[box[0] : box[1] + 1, box[2] : box[3] + 1] = True
    rgba[..., 3] = np.where(mask, rng.integers(softest, 256, (height, width)), 0)
    return rgba


def points(height, width, seed=0, missing=0.2):
    """float32 [3, H, W] around z = 2, some of them not there."""
    rng = np.random.default_rng(seed)
    pointmap = rng.normal(0, 1, (3, height, width)).astype(np.float32) + np.float32([[[0]], [[0]], [[2]]])
    pointmap[:, rng.random((height, width)) < missing] = np.nan
    return pointmap


def interpolated(planes, height, width, mode, dtype=np.float64):
    """[C, height, width] of planes [C, H, W], by PyTorch."""
    options = {"antialias": True, "align_corners": False} if mode == "bilinear" else {}
    given_planes = torch.from_numpy(np.asarray(planes, dtype))[None]
    return torch.nn.functional.interpolate(given_planes, (height, width), mode=mode, **options)[0].numpy()


def square(planes, fill, factor=0.0):
    """Planes [C, H, W] in the middle of a square, the odd row or column at its end, with a rim."""
    height, width = planes.shape[1:]
    side = max(height, width)
    rim = int(side * factor)
    before = [(side - height) // 2, (side - width) // 2]
    pads = [(first + rim, side - length - first + rim) for first, length in zip(before, (height, width), strict=True)]
    return np.pad(planes, [(0, 0), *pads], constant_values=fill)


def boxed(planes, box):
    """Planes [C, H, W] inside of a box (left, top, right, bottom), 0 beyond them."""
    far = 2 * max(*planes.shape[1:], *np.abs(box))
    left, top, right, bottom = np.add(box, far)
    return np.pad(planes, [(0, 0), (far, far), (far, far)])[:, top:bottom, left:right]


def moved_and_scaled(pointmap, scale, shift):
    """(point - shift) / scale in float64."""
    return (pointmap.astype(np.float64) - shift[:, None, None]) / scale


def transformed(pointmap, scale, shift):
    """The same as upstream has it, in float32: (x, y, z, 1) times the inverse of the matrix that scales and shifts."""
    matrix = torch.diag(torch.tensor([scale, scale, scale, 1], dtype=torch.float32))
    matrix[3, :3] = torch.from_numpy(shift)
    rows = torch.from_numpy(np.concatenate([pointmap, np.ones_like(pointmap[:1])])).flatten(1).T @ matrix.inverse()
    return (rows[:, :3] / rows[:, 3:]).T.reshape(pointmap.shape).numpy()


def expected(rgba, pointmap, size, factor, padding, dtype=np.float64, normalise=moved_and_scaled):
    """What `preprocess` gives, at the full size of everything."""
    unit = rgba.transpose(2, 0, 1) / 255
    colours, mask, box = unit[:3], unit[3:], mask_box(rgba[..., 3], factor)
    found = {
        "image": interpolated(square(boxed(colours, box), 0, padding), size, size, "bilinear", dtype),
        "mask": interpolated(square(boxed(mask, box), 0, padding), size, size, "nearest"),
        "rgb_image": interpolated(square(colours, 0), size, size, "bilinear", dtype),
        "rgb_image_mask": interpolated(square(mask, 0), size, size, "nearest"),
    }
    inside = interpolated(mask, *pointmap.shape[1:], "nearest")[0] > 0.5
    if np.isfinite(pointmap[:, inside]).all(0).any():
        shift = np.nanquantile(pointmap[:, inside], 0.5, axis=1, method="lower")
        scale = np.nanquantile(np.abs(pointmap - shift[:, None, None]).max(0), 0.5, method="lower")
    else:
        shift, scale = np.zeros(3, np.float32), np.float32(1)
    own = normalise(pointmap, scale, shift)
    whole = own
    if own.shape[1:] != rgba.shape[:2]:
        holes = interpolated(np.isnan(own), *rgba.shape[:2], "nearest") > 0.5
        whole = np.where(holes, np.nan, interpolated(np.nan_to_num(own), *rgba.shape[:2], "bilinear", dtype))
    found["pointmap"] = interpolated(square(boxed(whole, box), np.nan, padding), size, size, "nearest")
    found["rgb_pointmap"] = interpolated(square(own, 0), size, size, "nearest")
    return found, scale, shift


def test_without_a_point_map_the_structure_sees_the_whole_photo_or_the_crop():
    rgba = photo(40, 60, (10, 20, 30, 45))
    plain, cropped = preprocess(rgba, size=28), preprocess(rgba, size=28, structure_sees_crop=True)
    for name, value in plain.slat.items():
        np.testing.assert_array_equal(cropped.slat[name], value)
        np.testing.assert_array_equal(cropped.structure[name], value)
        whole = plain.slat[name if name.startswith("rgb_") else {"image": "rgb_image", "mask": "rgb_image_mask"}[name]]
        np.testing.assert_array_equal(plain.structure[name], whole)
    assert not np.array_equal(plain.structure["image"], cropped.structure["image"])
    assert cropped.structure is not cropped.slat  # a stage lets go of its inputs
    with_points, same = (preprocess(rgba, points(40, 60), 28, structure_sees_crop=crop) for crop in (False, True))
    assert all(np.array_equal(value, same.structure[name], True) for name, value in with_points.structure.items())


@st.composite
def scenes(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    box = top, draw(st.integers(top, height - 1)), left, draw(st.integers(left, width - 1))
    seed = draw(st.integers(0, 1000))
    same = draw(st.booleans())
    shape = (height, width) if same else (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    return photo(height, width, box, seed, softest=1), points(*shape, seed)


@pytest.mark.filterwarnings("ignore:pointmap. has no point")
@settings(deadline=None, max_examples=60)
@given(scenes(), st.integers(1, 50), st.sampled_from([1.0, 1.2, 3.0]), st.sampled_from([0.0, 0.25]))
def test_as_pytorch_interpolates(scene, size, factor, padding):
    rgba, pointmap = scene
    try:
        found = preprocess(rgba, pointmap, size, factor, padding)
    except ValueError as error:  # few pixels, of which one may have a point, and none be above one half
        assert "finite" in str(error) or "above one half" in str(error)
        return
    arrays, scale, shift = expected(rgba, pointmap, size, factor, padding)
    reach = np.nanmax(np.abs(pointmap), initial=0)
    assert_close(found.scale, np.full((1, 3), scale, np.float32), ROUNDINGS, scale=reach)
    assert_close(found.shift, shift[None].astype(np.float32), ROUNDINGS, scale=reach)
    assert set(found.structure) == set(arrays) and set(found.slat) == set(arrays) - {"pointmap", "rgb_pointmap"}
    for name, array in arrays.items():
        size_of_terms = 4 * reach / scale if "pointmap" in name else 1  # what is subtracted, then divided
        assert_close(found.structure[name], array[None].astype(np.float32), ROUNDINGS, scale=size_of_terms, name=name)
        assert found.structure[name].dtype == np.float32 and found.structure[name].flags.c_contiguous
    assert all(found.slat[name] is found.structure[name] for name in found.slat)


@pytest.mark.parametrize(
    ("shape", "map_shape", "size", "other", "factor", "padding"),
    [
        ((150, 200), (150, 200), 64, 90, 1.2, 0.0),
        ((90, 61), (45, 80), 112, 30, 1.5, 0.1),
        ((61, 120), (300, 350), 50, 224, 1.2, 0.0),
        ((240, 160), (20, 13), 37, 60, 1.0, 0.25),
        ((301, 224), (211, 160), 140, 60, 1.2, 0.0),
    ],
)
@pytest.mark.parametrize("seed", [0, 2])
def test_golden_files_of_other_sizes(shape, map_shape, size, other, factor, padding, seed, tmp_path):
    """Their bounds hold for a reference in float32 that rounds as upstream does."""
    height, width = shape
    rgba, pointmap = photo(*shape, (height // 4, height // 2, width // 5, width // 2), seed), points(*map_shape, seed, 0.02)
    pointmap += np.float32([[[9]], [[-4]], [[30]]]) * np.float32(seed)  # far away, so that much cancels, or near
    config = {"size": size, "box_size_factor": factor, "padding_factor": padding}
    tensors = {"in.rgba": rgba, "in.pointmap": pointmap}

    def reference(size):
        found, *moments = expected(rgba, pointmap, size, factor, padding, np.float32, transformed)
        return {name: np.asarray(value[None], np.float32) for name, value in found.items()}, moments

    found, (scale, shift) = reference(size)
    tensors |= {f"out.ss.{name}": value for name, value in found.items()}
    for name in ("pointmap", "rgb_pointmap"):
        tensors |= {f"out.ss.{name}_scale": np.full((1, 3), scale, np.float32), f"out.ss.{name}_shift": shift[None]}
    for name, value in reference(other)[0].items():
        tensors[f"out.ss{other}_stride5.{name}"] = np.ascontiguousarray(value[..., 2::5, 2::5])
        tensors[f"out.slat{other}_mean.{name}"] = np.nanmean(value, dtype=np.float64)[None]
    tensors = {name: value for name, value in tensors.items() if "slat" not in name or "pointmap" not in name}
    path = tmp_path / "preprocess__other.safetensors"
    save_file(tensors, path, {"config": json.dumps(config)})
    report = check_file(path)
    assert report.ok and len(report.rows) == 6 + 4 + 6 + 4, report.table()
    assert all(row.bound < 1e-3 for row in report.rows), report.table()


def test_the_inputs_of_the_whole_chain():
    tensors = load_file(DATA / "golden" / "preprocess.safetensors")
    once, again = (preprocess(tensors["in.rgba"], tensors["in.pointmap"]) for _ in range(2))
    for name, value in once.structure.items():
        assert value.shape == (1, 1 if "mask" in name else 3, SIZE, SIZE)
        assert value.tobytes() == again.structure[name].tobytes()
    assert once.structure["image"].min() >= 0 and once.structure["image"].max() <= 1


def test_without_a_point_map_only_the_second_stage_sees_the_crop():
    rgba = photo(30, 50, (3, 12, 5, 20))
    without, with_map = preprocess(rgba, size=28), preprocess(rgba, points(30, 50), size=28)
    assert without.scale is None and without.shift is None
    assert set(without.structure) == {"image", "mask", "rgb_image", "rgb_image_mask"}
    for name, value in with_map.slat.items():
        assert np.array_equal(without.slat[name], value)
    assert np.array_equal(without.structure["image"], without.slat["rgb_image"])
    assert np.array_equal(without.structure["mask"], without.slat["rgb_image_mask"])
    assert not np.array_equal(without.slat["image"], without.slat["rgb_image"])


@pytest.mark.parametrize(
    ("rows", "columns", "factor", "box"),
    [
        ((10, 30), (20, 60), 1.2, (16, -4, 64, 44)),  # 40 wide, 48 with its surroundings, around (40, 20)
        ((10, 10), (20, 20), 1.2, (19, 9, 21, 11)),  # one pixel
        ((0, 0), (0, 0), 1.2, (-1, -1, 1, 1)),  # one pixel in a corner
        ((0, 1), (0, 1), 1.2, (0, 0, 1, 1)),  # -0.5 and 1.5 towards 0
        ((0, 9), (0, 9), 1.2, (0, 0, 9, 9)),  # a side of 10.8 -> 10: -0.5 to 9.5
        ((0, 9), (2, 9), 1.2, (0, 0, 10, 9)),  # so that a box need not be square
        ((0, 99), (0, 99), 1.2, (-9, -9, 108, 108)),  # all of a photo: more than there is
        ((0, 99), (0, 0), 2.0, (-99, -49, 99, 148)),
    ],
)
def test_the_box_around_a_mask(rows, columns, factor, box):
    mask = np.zeros((100, 100), np.uint8)
    mask[rows[0], columns[0]] = mask[rows[1], columns[1]] = 1
    assert mask_box(mask, factor) == box


@pytest.mark.parametrize(("height", "width"), [(1, 60), (60, 1), (40, 40)])
def test_a_mask_of_one_pixel(height, width):
    """It fills a quarter of the crop, whose other pixels are its neighbours or beyond the photo."""
    rgba = photo(height, width, (height // 2, height // 2, width // 2, width // 2))
    inputs = preprocess(rgba, points(height, width, missing=0), size=8).structure
    y, x = height // 2, width // 2
    assert np.all(inputs["mask"][0, 0, 4:, 4:] == np.float32(rgba[y, x, 3] / 255))
    assert inputs["mask"].astype(bool).sum() == 16
    assert np.all(inputs["pointmap"][..., 4:, 4:] == 0)  # the object is its own median


def test_a_mask_that_fills_the_photo_is_cropped_with_nothing_around_it():
    rgba = np.full((100, 100, 4), 255, np.uint8)
    inputs = preprocess(rgba, points(100, 100, missing=0), size=117).slat  # the crop's own size
    whole = np.zeros((117, 117), np.float32)
    whole[9:109, 9:109] = 1
    assert np.array_equal(inputs["mask"][0, 0], whole) and np.array_equal(inputs["image"][0, 1], whole)


def test_points_beyond_the_photo_are_zero_and_the_rim_of_the_crop_is_not_a_number():
    rgba = photo(10, 8, (0, 9, 4, 7))
    assert mask_box(rgba[..., 3], 1.2) == (0, 0, 10, 9)
    found = preprocess(rgba, points(10, 8, missing=0), size=10).structure["pointmap"][0]  # of the box's longer side
    assert np.all(np.isnan(found[:, 9])) and not np.isnan(found[:, :9]).any()
    assert np.all(found[:, :9, 8:] == 0) and np.all(found[:, :9, :8].any(0))


def test_a_crop_may_be_looked_at_beyond_the_photo_alone():
    rgba, pointmap = photo(1, 1, (0, 0, 0, 0)), points(2, 1, missing=0)
    assert mask_box(rgba[..., 3], 1.0) == (-1, -1, 1, 1)
    assert np.array_equal(preprocess(rgba, pointmap, 1, 1.0).structure["pointmap"], np.zeros((1, 3, 1, 1)))


def test_a_pixel_is_a_point_only_if_all_of_it_is_finite():
    rgba, pointmap = photo(6, 6, (0, 5, 0, 5)), points(6, 6, missing=0)
    pointmap[0, 0, 0], pointmap[1, 1, 1], pointmap[2, 2, 2] = np.nan, np.inf, -np.inf
    found = preprocess(rgba, pointmap, size=6).structure["rgb_pointmap"][0]
    holes = np.zeros((6, 6), bool)
    holes[[0, 1, 2], [0, 1, 2]] = True
    assert np.array_equal(np.isnan(found), np.broadcast_to(holes, found.shape))


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_a_mask_without_a_point_leaves_the_map_in_its_units_and_is_told(unknown):
    rgba, pointmap = photo(8, 8, (2, 5, 2, 5)), points(8, 8, missing=0)
    pointmap[:, 2:6, 2:6] = unknown
    with pytest.warns(Notice, match="pointmap: has no point in the 16 pixels of the mask"):
        found = preprocess(rgba, pointmap, size=8)
    assert np.array_equal(found.scale, np.ones((1, 3))) and np.array_equal(found.shift, np.zeros((1, 3)))
    expected_map = pointmap.copy()
    expected_map[:, 2:6, 2:6] = np.nan
    assert np.array_equal(found.structure["rgb_pointmap"][0], expected_map, equal_nan=True)
    assert np.isnan(found.structure["pointmap"][0, :, 2:6, 2:6]).all()


def test_a_map_without_any_point_is_all_holes():
    with pytest.warns(Notice, match="has no point in the 16 pixels"):
        found = preprocess(photo(8, 8, (2, 5, 2, 5)), np.full((3, 8, 8), np.nan, np.float32), size=8)
    assert np.isnan(found.structure["rgb_pointmap"]).all() and found.scale.dtype == found.shift.dtype == np.float32


def wrong_points(kind):
    pointmap = points(8, 8, missing=0)
    if kind == "far":
        pointmap[0, 2:6, 2:6] = np.inf
        pointmap[:, 3, 3] = 1
    elif kind == "sky":
        pointmap[:] = np.inf
        pointmap[:, 2:6, 2:6] = 1
    else:
        pointmap[:] = 1
    return pointmap


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rgba": photo(8, 8, (2, 5, 2, 5)) // np.uint8([1, 1, 1, 3]), "pointmap": points(8, 8)},
            r"mask: expected pixels above one half, .* given none at .* up to \d+ of 255",
        ),
        (
            {"pointmap": wrong_points("far")},
            r"pointmap: expected mostly finite points inside the mask, given a median of \[inf",
        ),
        (
            {"pointmap": wrong_points("sky")},
            r"pointmap: expected points around the object at a finite distance, .* median of inf",
        ),
        (
            {"pointmap": wrong_points("flat")},
            r"pointmap: expected points around the object at a finite distance, .* median of 0",
        ),
        (
            {"pointmap": np.zeros((3, 8), np.float32)},
            r"pointmap: expected float32 \[3, h, w\], given float32 \[3, 8\]",
        ),
        ({"size": 0}, "size: expected an integer of at least 1, given 0"),
        ({"box_size_factor": 0.5}, "box_size_factor: expected a finite number of at least 1, given 0.5"),
        ({"box_size_factor": float("nan")}, "box_size_factor: expected a finite number"),
        ({"padding_factor": -1}, "padding_factor: expected a finite number of at least 0, given -1"),
        ({"rgba": photo(8, 8, (2, 5, 2, 5))[..., :3]}, "mask: expected one, as image has no alpha channel"),
        ({"rgba": np.zeros((8, 8, 4), np.uint8)}, "mask .*: expected pixels above 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        preprocess(**{"rgba": photo(8, 8, (2, 5, 2, 5)), "size": 8} | arguments)


def test_a_photo_of_8192_pixels_a_side_is_not_held_as_floats():
    rgba = np.zeros((8192, 8192, 4), np.uint8)
    rgba[1000:7000, 1000:7000] = 255
    tracemalloc.start()
    found = preprocess(rgba)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8192 * 8192 * 4 / 2, f"{peak / 2**20:.0f} MiB, where one channel in float32 takes 256"
    assert_close(found.slat["image"].mean(), np.float32((6000 / 7198) ** 2), ROUNDINGS)
