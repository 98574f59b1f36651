"""Point maps of every kind of axes, depth with intrinsics, and how what was understood is said."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from sam3d_tvm.notices import Notice
from sam3d_tvm.photo.pointmaps import (
    AXES,
    as_intrinsics,
    as_pointmap,
    axes_seen,
    depth_as_points,
    load_point_map,
    load_points,
)

HEIGHT, WIDTH = 30, 40
FX, FY, CX, CY = 50.0, 45.0, 22.0, 13.0
RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
DEPTH = 2 + RNG.random((HEIGHT, WIDTH))
# Of OpenCV's axes: x right, y down, z away.
POINTS = np.stack([(COLUMNS - CX) / FX * DEPTH, (ROWS - CY) / FY * DEPTH, DEPTH]).astype(np.float32)
CAMERA = POINTS * np.float32([-1, -1, 1])[:, None, None]  # PyTorch3D's: x left, y up, z away
SIGNS = {"pytorch3d": (-1, -1, 1), "opencv": (1, 1, 1), "opengl": (1, -1, -1)}
WORDS = {
    "pytorch3d": "those of pytorch3d, x left, y up, z away from the viewer",
    "opencv": "those of opencv, x right, y down, z away from the viewer",
    "opengl": "those of opengl, x right, y up, z towards the viewer",
}


def in_axes(signs):
    return POINTS * np.float32(signs)[:, None, None]


# Axes


@pytest.mark.parametrize("name", SIGNS)
def test_axes_are_told_by_signs_and_said(name):
    assert set(SIGNS) == set(AXES)
    given = in_axes(SIGNS[name])
    with pytest.warns(Notice, match=f"^pointmap: axes are {WORDS[name]}, by the signs of its points$"):
        found = load_points(given)
    assert np.array_equal(found, CAMERA) and found.dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(load_points(given, name), CAMERA)
    assert (load_points(given, name) is given) == (name == "pytorch3d")


@pytest.mark.parametrize("signs", [(1, -1, 1), (-1, 1, 1), (1, 1, -1), (-1, -1, -1), (-1, 1, -1)])
def test_left_handed_and_other_axes_are_understood(signs):
    with pytest.warns(Notice, match="pointmap: axes are x (left|right), y (up|down), z (away|towards)"):
        assert np.array_equal(load_points(in_axes(signs)), CAMERA)


@pytest.mark.parametrize("seed", range(5))
def test_axes_of_scenes_of_all_kinds(seed):
    """A camera whose middle is not that of the map, depth over three magnitudes, holes, and some points that are wrong."""
    random = np.random.default_rng(seed)
    depth = 10 ** random.uniform(-1, 2, (HEIGHT, WIDTH))
    cx, cy = random.uniform(-WIDTH, 2 * WIDTH), random.uniform(-HEIGHT, 2 * HEIGHT)
    points = np.stack([(COLUMNS - cx) / 30 * depth, (ROWS - cy) / 30 * depth, depth]).astype(np.float32)
    points[:, random.random((HEIGHT, WIDTH)) < 0.5] = np.nan
    points[:, random.random((HEIGHT, WIDTH)) < 0.03] *= -1
    assert axes_seen(points) == (1, 1, 1)


@pytest.mark.parametrize("share", [1.0, 0.0001])
def test_axes_of_large_maps(share):
    rows, columns = np.mgrid[:1200, :1600].astype(np.float32)
    points = np.stack([columns - 700, 500 - rows, np.full_like(rows, -900)]) * RNG.uniform(1, 2, (1200, 1600)).astype(
        np.float32
    )
    points[:, RNG.random((1200, 1600)) > share] = np.nan
    assert axes_seen(points) == SIGNS["opengl"]


def test_orthographic_maps_have_axes_too():
    assert axes_seen(np.stack([COLUMNS, -ROWS, np.full_like(ROWS, 7)]).astype(np.float32)) == (1, -1, 1)


@pytest.mark.parametrize(
    ("points", "unclear"),
    [
        (RNG.normal(size=(3, HEIGHT, WIDTH)), "x and y and z"),
        (np.stack([RNG.normal(size=(HEIGHT, WIDTH)), POINTS[1], POINTS[2]]), "x"),
        (POINTS[[2, 0, 1]], "x and y and z"),  # of a robot: x away
        (POINTS - np.float32([[[0]], [[0]], [[2.5]]]), "z"),  # in the frame of the object
        (POINTS[:, :, :1].repeat(WIDTH, 2), "x"),
    ],
)
def test_axes_that_cannot_be_told(points, unclear):
    points = points.astype(np.float32)
    with pytest.raises(
        ValueError, match=rf"given some where .*{unclear}.* does not: .* --pointmap-axes .*: pytorch3d, opencv, opengl"
    ):
        load_points(points)
    assert load_points(points, "opencv").shape == points.shape


def test_axes_that_are_named_are_held_against_the_points():
    with pytest.raises(
        ValueError, match=r"pointmap: expected points in front of the camera, given z below 0, which is behind it .*opencv"
    ):
        load_points(in_axes(SIGNS["opengl"]), "opencv")
    with pytest.raises(ValueError, match="given z above 0"):
        load_points(POINTS, "opengl")
    with pytest.warns(
        Notice, match=r"named as those of pytorch3d \(x left, y up, .*\), but its points look like x right, y down"
    ):
        assert np.array_equal(load_points(POINTS, "pytorch3d"), POINTS)
    with pytest.raises(
        ValueError, match="pointmap_axes: expected one of 'auto', 'pytorch3d', 'opencv', 'opengl', given 'blender'"
    ):
        load_points(POINTS, "blender")


# Holes


def test_zeros_and_infinities_are_unknown():
    points = POINTS.copy()
    points[:, 3:10, 5:20] = 0
    points[:, 12, :] = np.inf  # as MoGe has the sky
    points[0, 20, 20] = np.nan
    points[2, 21, 21] = -np.inf
    expected = CAMERA.copy()
    expected[:, 3:10, 5:20] = expected[:, 12] = expected[:, 20, 20] = expected[:, 21, 21] = np.nan
    before = points.copy()
    with pytest.warns(Notice, match="those of opencv"):
        found = load_points(points)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(points, before, equal_nan=True)  # the caller's
    on_axis = POINTS.copy()
    on_axis[:2, 5, 5] = 0  # a point, straight ahead
    assert np.array_equal(as_pointmap(on_axis), on_axis)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((3, 4, 5)), r"pointmap: expected a finite point somewhere, given 20 pixels that are unknown"),
        (np.full((3, 4, 5), np.nan), r"expected a finite point somewhere"),
        (np.full((3, 4, 5), np.inf), r"expected a finite point somewhere"),
        (np.ones((3, 4, 5)), r"expected points that differ, given \[1.0, 1.0, 1.0\] in all 20 known pixels"),
        (np.ones((2, 3, 4, 5)), r"expected floats \[3, H, W\] or \[H, W, 3\], given float64 \[2, 3, 4, 5\]"),
    ],
)
def test_maps_that_cannot_be(points, message):
    for axes in ("auto", "opencv"):
        with pytest.raises(ValueError, match=message):
            load_points(points, axes)


# Files


def test_files_as_depth_models_write_them(tmp_path):
    rows_last = np.ascontiguousarray(POINTS.transpose(1, 2, 0))
    tensor = torch.from_numpy(rows_last)
    np.savez(tmp_path / "moge.npz", points=rows_last, depth=DEPTH, mask=DEPTH > 0, intrinsics=np.eye(3))
    np.savez(tmp_path / "both.npz", points=CAMERA * 2, pointmap=rows_last)
    np.save(tmp_path / "batch.npy", POINTS[None])
    torch.save(tensor, tmp_path / "tensor.pt")
    torch.save(tensor[None].permute(0, 3, 1, 2), tmp_path / "batch.pth")
    torch.save({"pointmap": tensor.bfloat16(), "intrinsics": torch.eye(3), "note": "text"}, tmp_path / "named.pt")
    for name in ("moge.npz", "both.npz", "batch.npy", "tensor.pt", "batch.pth", "named.pt"):
        with pytest.warns(Notice, match=rf"pointmap '.*{name}': axes are those of opencv"):
            found = load_points(tmp_path / name)
        assert np.allclose(found, CAMERA, rtol=2**-8 if name == "named.pt" else 0), name


def test_files_of_torch_that_are_refused(tmp_path):
    torch.save({"points": CodeRunner()}, tmp_path / "code.pt")
    torch.save({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "names.pt")
    (tmp_path / "text.pt").write_text("no tensor")
    for name, message in {
        "code.pt": "expected tensors alone in a file of torch, cannot read it: .*CodeRunner.*, which may be code$",
        "names.pt": "expected one tensor, or one called 'pointmap', 'pointmaps' or 'points', given a, b$",
        "text.pt": "expected tensors alone in a file of torch, cannot read it: ",
        "missing.pt": "expected tensors alone in a file of torch, cannot read it: missing.pt: .*No such file",
    }.items():
        with pytest.raises(ValueError, match=rf"pointmap '.*{name}': {message}") as caught:
            load_points(tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not CodeRunner.ran


class CodeRunner:
    """Calls something when it is unpickled."""

    ran = False

    def __reduce__(self):
        return CodeRunner.run, ()

    @staticmethod
    def run():
        CodeRunner.ran = True


def test_headers_and_members_that_are_too_large_are_not_read(tmp_path):
    zeros = np.zeros((3, 3000, 3000), np.float64)
    np.savez_compressed(tmp_path / "bomb.npz", zeros)
    with pytest.raises(ValueError, match=r"bomb.npz': .* expands to 216,000,\d+ bytes from"):
        load_points(tmp_path / "bomb.npz")
    np.save(tmp_path / "points.npy", POINTS)
    whole = (tmp_path / "points.npy").read_bytes()
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(3, 30, 40), }          ", b"(3, 99999, 99999), }    "))
    with pytest.raises(
        ValueError, match=r"huge.npy': .* its header says \[3, 99999, 99999\] of float32, and 14,400 bytes follow"
    ):
        load_points(tmp_path / "huge.npy")


# Depth

INTRINSICS = [FX, FY, CX, CY]
MATRIX = np.array([[FX, 0, CX], [0, FY, CY], [0, 0, 1]])


def test_depth_with_intrinsics(tmp_path):
    millimetres = np.rint(DEPTH * 1000).astype(np.uint16)
    Image.fromarray(millimetres).save(tmp_path / "depth.png")
    Image.fromarray(DEPTH.astype(np.float32)).save(tmp_path / "depth.tiff")
    np.save(tmp_path / "depth.npy", DEPTH[None])
    np.save(tmp_path / "millimetres.npy", millimetres[..., None])
    np.savez(tmp_path / "depth.npz", depth=DEPTH, mask=DEPTH > 0)
    torch.save(torch.from_numpy(DEPTH)[None, None], tmp_path / "depth.pt")
    for name in ("depth.png", "depth.tiff", "depth.npy", "millimetres.npy", "depth.npz", "depth.pt"):
        found = load_points(None, depth=tmp_path / name, intrinsics=INTRINSICS)
        assert found.dtype == np.float32 and np.allclose(found, CAMERA, atol=6e-4), name
    for depth in (DEPTH, torch.from_numpy(DEPTH), DEPTH[..., None].astype(np.float32)):
        assert np.allclose(depth_as_points(depth, INTRINSICS), CAMERA, atol=1e-6)
    assert np.allclose(depth_as_points(millimetres, INTRINSICS, 500), 2 * CAMERA, atol=2e-3)
    assert np.allclose(depth_as_points(DEPTH * 100, INTRINSICS, 100), CAMERA, atol=1e-6)


def test_the_axes_of_depth_are_those_of_its_points():
    assert axes_seen(depth_as_points(DEPTH, INTRINSICS)) == SIGNS["pytorch3d"]
    # One metre ahead of a camera whose middle is the pixel (row 13, column 22), the pixel to its right is at x = -1 / 50.
    found = depth_as_points(np.ones((HEIGHT, WIDTH)), INTRINSICS)
    assert np.allclose(found[:, 13, 23], [-1 / 50, 0, 1]) and np.allclose(found[:, 12, 22], [0, 1 / 45, 1])


def test_unknown_depth():
    depth = DEPTH.copy()
    depth[0, 0], depth[1, 1], depth[2, 2] = 0, np.nan, np.inf
    found = depth_as_points(depth, INTRINSICS)
    holes = np.isnan(found)
    assert holes.sum() == 9 and holes[:, [0, 1, 2], [0, 1, 2]].all()


@pytest.mark.parametrize(
    "content",
    [
        {"fx": FX, "fy": FY, "cx": CX, "cy": CY},
        {"width": WIDTH, "height": HEIGHT, "fx": FX, "fy": FY, "ppx": CX, "ppy": CY, "model": "Brown"},  # RealSense
        {"intrinsic_matrix": [FX, 0, 0, 0, FY, 0, CX, CY, 1]},  # Open3D, by columns
        {"K": MATRIX.ravel().tolist()},
        {"camera_matrix": MATRIX.tolist()},
        {"intrinsics": {"fx": FX, "fy": FY, "cx": CX, "cy": CY}},
        MATRIX.tolist(),
        INTRINSICS,
    ],
)
def test_intrinsics_as_json(tmp_path, content):
    (tmp_path / "camera.json").write_text(json.dumps(content))
    assert np.array_equal(as_intrinsics(tmp_path / "camera.json", (WIDTH, HEIGHT)), MATRIX)


def test_intrinsics_of_other_kinds(tmp_path):
    four = np.eye(4)
    four[:3, :3] = MATRIX
    np.save(tmp_path / "k.npy", MATRIX[None])
    np.savez(tmp_path / "k.npz", intrinsics=MATRIX, other=four)
    np.savetxt(tmp_path / "k.txt", four)  # ScanNet
    (tmp_path / "four.txt").write_text("50 45 22 13\n")
    torch.save({"K": torch.from_numpy(MATRIX)}, tmp_path / "k.pt")
    for given in (tmp_path / "k.npy", tmp_path / "k.npz", tmp_path / "k.txt", tmp_path / "four.txt", tmp_path / "k.pt"):
        assert np.array_equal(as_intrinsics(given, (WIDTH, HEIGHT)), MATRIX), given
    for given in (
        "50,45,22,13",
        " 50.0, 45, 22 ,13",
        INTRINSICS,
        tuple(INTRINSICS),
        MATRIX,
        torch.from_numpy(MATRIX),
        MATRIX[None],
    ):
        assert np.array_equal(as_intrinsics(given, (WIDTH, HEIGHT)), MATRIX), given


def test_intrinsics_in_fractions(tmp_path):
    """Of MoGe, whose pixel (row, column) lies at ((column + 0.5) / width, (row + 0.5) / height)."""
    fractions = np.array([[1.2, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]])
    np.savez(tmp_path / "moge.npz", points=POINTS, depth=DEPTH, intrinsics=fractions)
    with pytest.warns(Notice, match=r"intrinsics: taken as fractions of width and height, as focal lengths are 1.2 and 1.6"):
        found = load_points(None, depth=tmp_path / "moge.npz")
    x, y = ((COLUMNS + 0.5) / WIDTH - 0.5) / 1.2 * DEPTH, ((ROWS + 0.5) / HEIGHT - 0.5) / 1.6 * DEPTH
    assert np.allclose(found, [-x, -y, DEPTH], atol=1e-6)


def test_intrinsics_in_fractions_through_a_telephoto_lens(tmp_path):
    """Focal lengths of many widths and heights, as of 4 degrees."""
    fractions = np.array([[14.3, 0, 0.5], [0, 19.1, 0.48], [0, 0, 1]])
    expected = [[14.3 * WIDTH, 0, WIDTH / 2 - 0.5], [0, 19.1 * HEIGHT, 0.48 * HEIGHT - 0.5], [0, 0, 1]]
    with pytest.warns(Notice, match=r"intrinsics: taken as fractions of width and height, as focal lengths are 14.3 and 19.1"):
        np.testing.assert_allclose(as_intrinsics(fractions, (WIDTH, HEIGHT)), expected)
    np.savez(tmp_path / "points.npz", points=CAMERA.transpose(1, 2, 0), intrinsics=fractions)
    np.testing.assert_allclose(load_point_map(tmp_path / "points.npz", "pytorch3d").intrinsics, fractions)


def test_intrinsics_of_another_size_are_said():
    with pytest.warns(Notice, match=r"camera's middle, \(44, 26\), is not near that of the depth map, 40 x 30 pixels"):
        as_intrinsics([100, 90, 44, 26], (WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pointmap": POINTS, "depth": DEPTH, "intrinsics": INTRINSICS}, "depth: expected depth or a point map, given both"),
        ({"pointmap": POINTS, "intrinsics": INTRINSICS}, "intrinsics: expected with depth alone, given .* without it"),
        ({"depth_scale": 1000}, "depth_scale: expected with depth alone, given 1000 without it"),
        ({"depth": DEPTH}, "intrinsics: expected those of the camera with depth, as fx,fy,cx,cy or a file, given none"),
        (
            {"depth": -DEPTH, "intrinsics": INTRINSICS},
            "depth: expected depth above 0, and 0 where it is unknown, given values down to -",
        ),
        ({"depth": DEPTH * 0, "intrinsics": INTRINSICS}, "depth: expected a finite point somewhere"),
        ({"depth": np.uint8(DEPTH), "intrinsics": INTRINSICS}, "depth: expected 16 bits or floats, given 8 bits"),
        ({"depth": DEPTH > 0, "intrinsics": INTRINSICS}, r"depth: expected integers or floats \[H, W\], given bool"),
        (
            {"depth": POINTS, "intrinsics": INTRINSICS},
            r"depth: expected integers or floats \[H, W\], given float32 \[3, 30, 40\]",
        ),
        (
            {"depth": DEPTH, "intrinsics": INTRINSICS, "depth_scale": 0},
            "depth_scale: expected a finite number above 0, given 0",
        ),
        (
            {"depth": DEPTH, "intrinsics": [1, 2, 3]},
            r"intrinsics: expected fx, fy, cx, cy or a matrix \[3, 3\] .*given \[1, 2, 3\]",
        ),
        ({"depth": DEPTH, "intrinsics": [-50, 45, 22, 13]}, "intrinsics: expected .* focal lengths above 0"),
        ({"depth": DEPTH, "intrinsics": [50, np.nan, 22, 13]}, "intrinsics: expected .* finite numbers"),
        ({"depth": DEPTH, "intrinsics": np.eye(3)[::-1] * 50}, "intrinsics: expected .*fx, skew, cx"),
        (
            {"depth": DEPTH, "intrinsics": "missing.json"},
            "intrinsics 'missing.json': expected fx,fy,cx,cy or a file of them .*cannot read",
        ),
        (
            {"depth": DEPTH, "intrinsics": {"f": 1}},
            "intrinsics: expected fx, fy, cx and cy, or a matrix called K or .*, given f",
        ),
        ({"depth": "missing.png", "intrinsics": INTRINSICS}, "depth 'missing.png': expected a picture as"),
    ],
)
def test_depth_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_points(**{"pointmap": None} | arguments)


def test_pictures_of_depth_that_are_refused(tmp_path):
    Image.fromarray(np.uint8(DEPTH * 50)).save(tmp_path / "grey.png")
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"depth '.*grey.png': expected 16 bits or floats, given 8 bits"):
        depth_as_points(tmp_path / "grey.png", INTRINSICS)
    assert depth_as_points(tmp_path / "grey.png", INTRINSICS, 50).shape == (3, HEIGHT, WIDTH)
    with pytest.raises(
        ValueError, match=r"rgb.png': expected a grey picture of 16 bits, or of floats, given Pillow's mode 'RGB'"
    ):
        depth_as_points(tmp_path / "rgb.png", INTRINSICS)


def test_nothing_is_nothing():
    assert load_points(None) is None


# Photos with an orientation

TURNS = {2: [1], 3: [0, 1], 4: [0], 5: [], 6: [0], 7: [0, 1], 8: [1]}


@pytest.mark.parametrize("orientation", TURNS)
def test_maps_of_the_raw_pixels_are_turned_with_the_photo(orientation):
    """Their pixels and their axes: seen upright, points of the camera are told as those of any other."""
    swap = orientation > 4
    size = (60, 80) if swap else (80, 60)  # as it is seen, twice the map's
    if not swap:  # which of both cannot be told
        with pytest.warns(Notice, match="taken as upright, while the photo's file is (mirrored|turned)"):
            assert np.array_equal(load_points(CAMERA, "pytorch3d", size=size, orientation=orientation), CAMERA)
        return
    with pytest.warns(Notice, match="as the photo is by its EXIF data, whose file's shape it has"):
        found = load_points(CAMERA, "pytorch3d", size=size, orientation=orientation)
    assert found.shape == (3, WIDTH, HEIGHT) and axes_seen(found) == SIGNS["pytorch3d"]
    depth = np.flip(DEPTH, TURNS[orientation]).T.astype(np.float32)
    assert np.array_equal(found[2], depth)


def test_a_turn_by_90_degrees_in_numbers():
    """Orientation 6: left in the file is at the top of the photo, and the top is on the right."""
    with pytest.warns(Notice):
        found = load_points(CAMERA, "pytorch3d", size=(HEIGHT, WIDTH), orientation=6)
    for row, column in ((0, 0), (29, 0), (7, 33)):
        x_left, y_up, away = CAMERA[:, row, column]
        assert np.array_equal(found[:, column, HEIGHT - 1 - row], [-y_up, x_left, away])


def test_maps_that_are_upright_stay():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_points(CAMERA, "pytorch3d", size=(WIDTH, HEIGHT), orientation=6) is CAMERA
        assert load_points(CAMERA, "pytorch3d", size=(WIDTH, HEIGHT), orientation=1) is CAMERA


@pytest.mark.parametrize(("size", "stretched"), [((80, 60), False), ((78, 60), False), ((60, 80), True), ((80, 80), True)])
def test_a_map_of_another_shape_than_the_photo_is_said(size, stretched):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert load_points(CAMERA, "pytorch3d", size=size) is CAMERA
    said = f"pointmap: is stretched over the photo, as 40 x 30 pixels are of another shape than its {size[0]} x {size[1]}"
    assert [str(found.message).startswith(said) for found in told] == [True] * stretched


def test_a_scale_may_be_a_number_of_numpy():
    assert np.array_equal(
        load_points(None, depth=DEPTH, intrinsics=(FX, FY, CX, CY), depth_scale=np.float32(2)),
        load_points(None, depth=DEPTH, intrinsics=(FX, FY, CX, CY), depth_scale=2),
    )
