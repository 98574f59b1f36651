"""Which way is up in every file and picture, with objects that have no symmetry: what is seen, and what pose.json says.

A lamp stands above a table in the photo's camera, at (0, 1, 3) and (0, -1, 3) with y up. Each has three arms of other lengths
and colours along the axes of an object: to the right, away from who looks at its front, and up.
"""

import base64
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from PIL import Image
from plyfile import PlyData
from scipy.spatial.transform import Rotation

from sam3d_tvm.cli import main
from sam3d_tvm.frames import CAMERA, OBJECT, OPENCV, OPENGL, rotation
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.outputs import FORMATS, Result, save_scene
from sam3d_tvm.overview import overview, thumbnail
from sam3d_tvm.photo.camera import PhotoCamera
from sam3d_tvm.pose import Pose, matrix_to_quaternion
from sam3d_tvm.splat.cameras import camera_towards, orbit_box
from sam3d_tvm.splat.files import SPLAT_FORMATS, load_splat, save_splat
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians
from sam3d_tvm.splat.picture import splat_picture
from sam3d_tvm.splat.viewer import write_viewer
from tests.tolerance import assert_close, tolerance

ARMS = np.diag([0.45, 0.3, 0.2])  # ends of the arms to the right, away and up, in an object
LAMP, TABLE = np.array([(255, 0, 0), (0, 200, 0), (0, 0, 255)]), np.array([(0, 200, 200), (200, 0, 200), (200, 200, 0)])
LAMP_AT, TABLE_AT = (0, 1, 3), (0, -1, 3)
SPLATS = ["ply", *(name for name in SPLAT_FORMATS if name != "ply")]
MESHES = [name for name, kind in FORMATS.items() if kind.models == ("slat_decoder_mesh",)]
FEW = 8  # rounded operations behind a place


def splat_object(colors):
    """Round Gaussians along three arms, 20 each."""
    along = np.linspace(0.05, 1, 20)
    count = 3 * len(along)
    return Gaussians(
        xyz=(ARMS[:, None] * along[:, None]).reshape(-1, 3),
        features_dc=(np.repeat(colors, len(along), 0) / 255 - 0.5) / CONSTANT_HARMONIC,
        opacity_logit=np.full(count, 5.0),
        log_scaling=np.full((count, 3), np.log(0.03)),
        quaternion=np.tile([1, 0, 0, 0], (count, 1)),
    )


def mesh_object(colors):
    """A tetrahedron with corners at the ends of the arms."""
    attributes = np.zeros((4, 6), np.float32)
    attributes[1:, :3] = colors / 255
    vertices = np.vstack([np.zeros((1, 3)), ARMS]).astype(np.float32)
    return Mesh(vertices, np.int32([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]), attributes)


def pose_of(turn, translation, scale):
    """The pose that takes columns of an object through `turn` [3, 3]: its own matrix is for rows."""
    quaternion = matrix_to_quaternion(np.asarray(turn, np.float64).T)
    return Pose(np.float32([quaternion]), np.float32([translation]), np.full((1, 3), scale, np.float32))


def result(colors, pose):
    gaussians, mesh = splat_object(colors), mesh_object(colors)
    return Result(np.zeros((1, 4), np.int32), 1, pose, np.zeros((1, 8), np.float32), gaussians, gaussians, mesh)


UPRIGHT = rotation(OBJECT, CAMERA)
# A turn that no axis and no sign survives.
CROOKED = Rotation.from_euler("xyz", [0.4, -1.1, 2.3]).as_matrix()


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    results = [result(LAMP, pose_of(UPRIGHT, LAMP_AT, 1)), result(TABLE, pose_of(UPRIGHT, TABLE_AT, 1))]
    save_scene(results, folder, [*SPLATS, "html"])
    return folder


def middles(picture, colors, tolerance=60):
    """Where the pixels of each colour are in the middle, (right, down), float64 [colours, 2]; all are there."""
    pixels = np.asarray(picture.convert("RGB"), int)
    found = []
    for color in colors:
        down, right = np.nonzero(np.abs(pixels - color).max(2) < tolerance)
        assert len(down) >= 3, color
        found.append((right.mean(), down.mean()))
    return np.array(found)


def check_upright(picture):
    """The lamp above the table; in each, the arm that points up is above and left of the one that points to the right."""
    lamp, table = middles(picture, LAMP[::2]), middles(picture, TABLE[::2])
    assert lamp[:, 1].max() < table[:, 1].min()
    for right, up in (lamp, table):
        assert up[1] < right[1] - 1 and right[0] > up[0] + 1


def test_a_scene_is_in_the_axes_of_the_camera(scene):
    vertex = PlyData.read(scene / "scene_splat.ply")["vertex"]
    places = np.stack([vertex[axis] for axis in "xyz"], 1)
    for number, at in ((1, LAMP_AT), (2, TABLE_AT)):
        mine = places[vertex["object"] == number] - at
        # Right of the object is -x of the camera, its away +z, its up +y.
        assert_close(mine[[19, 39, 59]], np.float32([[-0.45, 0, 0], [0, 0, 0.3], [0, 0.2, 0]]), FEW, scale=3)
    assert load_splat(scene / "scene_splat.ply").frame == CAMERA


@pytest.mark.parametrize("name", SPLATS)
def test_every_file_of_a_scene_holds_the_same(scene, name):
    """In the axes of its format, which are read back into the camera's."""
    found = load_splat(scene / f"scene_{FORMATS[name].file}")
    assert found.frame == {"ply": CAMERA, "spz": OPENGL}.get(name, OPENCV)
    found, wanted = found.in_frame(CAMERA), load_splat(scene / "scene_splat.ply")
    order = np.linalg.norm(found.xyz[:, None] - wanted.xyz, axis=2).argmin(1)
    assert sorted(order) == list(range(len(wanted)))
    # The coarsest is a compressed .ply: half of a step of 10 bits along its whole extent of 2.7.
    assert np.abs(found.xyz - wanted.xyz[order]).max() <= 0.5 * 2.7 / 1023
    assert np.abs(found.colors - wanted.colors[order]).max() <= 0.01


@pytest.mark.parametrize("name", SPLATS)
def test_view_shows_the_lamp_above_the_table(scene, tmp_path, capsys, name):
    file = FORMATS[name].file
    assert main(["view", str(scene / f"scene_{file}"), "-o", str(tmp_path), "--views", "1", "--size", "300"]) == 0
    stem = f"scene_{file}".rpartition(".")[0]
    check_upright(Image.open(tmp_path / f"{stem}_view0.png"))
    check_page(tmp_path / f"{stem}.html")


def page_places(path):
    """What a page holds: positions [N, 3], y being down and z away, and colours."""
    packed = re.search(r'<script id="splat" type="text/plain">(.*?)</script>', path.read_text("utf-8"))[1]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(32, -1)
    rows = np.ascontiguousarray(planes.T)
    return rows[:, :12].copy().view("<f4"), rows[:, 24:27].astype(int)


def check_page(path):
    places, colors = page_places(path)
    ends = {}
    for name, wanted in (("lamp", LAMP), ("table", TABLE)):
        ends[name] = [places[np.abs(colors - color).max(1) < 10].mean(0) for color in wanted]
        right, away, up = ends[name]
        assert right[0] > up[0] and up[1] < right[1] and away[2] > right[2]
    assert max(end[1] for end in ends["lamp"]) < min(end[1] for end in ends["table"])  # y is down
    assert abs(np.mean(ends["lamp"], 0)[2] - np.mean(ends["table"], 0)[2]) < 0.1


def test_the_page_of_a_scene_has_the_lamp_above_the_table(scene):
    check_page(scene / "scene_splat.html")


def test_views_of_a_scene_are_upright(scene):
    sheet = overview(load_splat(scene / "scene_splat.ply"), None, size=300)
    check_upright(sheet.crop((0, 27, 300, 327)))


def test_the_first_view_is_from_where_the_photo_was_taken():
    """x of the camera is to the left in the photo, so that is where an object at +x is seen, and what is far is small."""
    left, right = result(LAMP, pose_of(UPRIGHT, (1, 0, 3), 1)), result(TABLE, pose_of(UPRIGHT, (-1, 0, 3), 1))
    both = Gaussians.merged([left.in_scene().gaussians, right.in_scene().gaussians])
    (first, *_), centre = orbit_box(*both.bounds, 4, frame=CAMERA), np.mean(both.bounds, 0)
    assert first.rotation[2] @ [0, 0, 1] > 0.9 and (first.position - centre) @ [0, 0, 1] < 0
    picture = splat_picture(both, first, 300)
    assert middles(picture, LAMP[::2])[:, 0].max() < middles(picture, TABLE[::2])[:, 0].min()
    behind = replace(both, xyz=both.xyz + np.where(both.objects == 1, 0, 1)[:, None] * np.float32([2, 0, 2]))
    pixels = np.asarray(splat_picture(behind, orbit_box(*behind.bounds, 1, 0, frame=CAMERA)[0], 300), int)
    assert (np.abs(pixels - LAMP[0]).max(2) < 60).sum() > (np.abs(pixels - TABLE[0]).max(2) < 60).sum()


@pytest.mark.parametrize("frame", [OBJECT, CAMERA, OPENCV, OPENGL], ids=lambda frame: frame.name)
def test_an_orbit_is_the_same_in_every_frame(frame):
    """Its cameras see the same, whatever the axes are called."""
    gaussians = splat_object(LAMP)
    turned = gaussians.in_frame(frame)
    assert_close(turned.xyz, gaussians.xyz @ rotation(OBJECT, frame).T.astype(np.float32), 1)
    cameras = [orbit_box(*each.bounds, 4, frame=each.frame) for each in (gaussians, turned)]
    for ours, theirs in zip(*cameras, strict=True):
        assert_close(theirs.view(turned.xyz), ours.view(gaussians.xyz), FEW, dtype=np.float32)
        assert np.allclose(theirs.rotation @ rotation(OBJECT, frame), ours.rotation)


@pytest.mark.parametrize("up, axes", [("z", OBJECT), ("y", OPENGL), ("-y", OPENCV)])
def test_view_takes_what_is_up_from_the_option(tmp_path, capsys, up, axes):
    """For files of other programs, which do not say it: the arm that points up is above the others, in the page as well."""
    save_splat(tmp_path / "there.ply", replace(splat_object(LAMP).in_frame(axes), frame=OBJECT))  # says nothing
    assert main(["view", str(tmp_path / "there.ply"), "--views", "1", "--size", "200", "--up", up]) == 0
    right, above = middles(Image.open(tmp_path / "there_view0.png"), LAMP[::2])
    assert above[1] < right[1] - 1 and right[0] > above[0] + 1
    places, colors = page_places(tmp_path / "there.html")
    ends = [places[np.abs(colors - color).max(1) < 10].mean(0) for color in LAMP]
    assert ends[2][1] < ends[0][1] and ends[0][0] > ends[2][0] and ends[1][2] > ends[0][2]


def test_view_refuses_another_direction_and_names_other_files(tmp_path, capsys):
    save_splat(tmp_path / "a.ply", splat_object(LAMP))
    assert main(["view", str(tmp_path / "a.ply"), "--up", "x"]) == 2
    assert "up: expected one of 'z', 'y', '-y', given 'x'" in capsys.readouterr().err
    (tmp_path / "a.ksplat").write_bytes(bytes(4096))
    assert main(["view", str(tmp_path / "a.ksplat")]) == 2
    assert "a file of GaussianSplats3D" in capsys.readouterr().err


def test_objects_of_several_frames_are_not_merged_and_a_pose_is_for_objects():
    lamp = splat_object(LAMP)
    placed = lamp.transformed(pose_of(CROOKED, (1, 2, 3), 2))
    assert placed.frame == CAMERA
    with pytest.raises(ValueError, match="parts: expected Gaussians in one frame, given some in camera, object"):
        Gaussians.merged([lamp, placed])
    with pytest.raises(ValueError, match="pose: expected Gaussians in the frame 'object', given some in 'camera'"):
        placed.transformed(pose_of(CROOKED, (1, 2, 3), 2))
    with pytest.raises(ValueError, match=r"frame: expected one of sam3d_tvm.frames, given 'camera'"):
        replace(lamp, frame="camera")
    with pytest.raises(ValueError, match=r"objects: expected integers \[60\], given float64 \[2\]"):
        replace(lamp, objects=[0.5, 1])


# What pose.json says.


def placed_by_hand(points, pose):
    """PyTorch3D: rows are scaled, multiplied by the rotation from the right, and moved; scipy makes the matrix."""
    w, x, y, z = pose["rotation"]
    matrix = Rotation.from_quat([x, y, z, w]).as_matrix()
    return points * pose["scale"] @ matrix + pose["translation"]


def vertices(path):
    """Places in a file as it is written, float64 [N, 3], by a library or by splat.files."""
    if path.name.startswith("mesh"):
        return np.asarray(trimesh.load(path, force="mesh", process=False).vertices, np.float64)
    return load_splat(path).xyz.astype(np.float64)


@pytest.fixture(scope="module")
def crooked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crooked")
    result(LAMP, pose_of(CROOKED, (0.3, -0.8, 2.5), 1.7)).save(folder, [*SPLATS, *MESHES])
    return folder, json.loads((folder / "pose.json").read_text())


def test_raw_values_are_those_of_the_pose(crooked):
    _, pose = crooked
    assert_close(Rotation.from_quat(np.roll(pose["rotation"], -1)).as_matrix().T, CROOKED, FEW, dtype=np.float32)
    assert np.float32(pose["translation"]).tolist() == np.float32([0.3, -0.8, 2.5]).tolist()
    assert pose["scale"] == [np.float32(1.7)] * 3


@pytest.mark.parametrize("name", [*SPLATS, *MESHES])
def test_the_matrix_of_a_file_takes_its_coordinates_into_the_camera(crooked, name):
    """Each of its points is where the object's end is that it came from, by the raw pose."""
    folder, pose = crooked
    found, matrix = vertices(folder / FORMATS[name].file), np.array(pose["matrices"][FORMATS[name].file])
    assert matrix.shape == (4, 4) and matrix[3].tolist() == [0, 0, 0, 1] and np.linalg.det(matrix) > 0
    columns = (matrix @ np.vstack([found.T, np.ones(len(found))]))[:3].T
    by_trimesh = trimesh.PointCloud(found).apply_transform(matrix).vertices
    assert np.allclose(columns, by_trimesh)
    points = splat_object(LAMP).xyz if name in SPLATS else mesh_object(LAMP).vertices
    wanted = placed_by_hand(points.astype(np.float64), pose)
    step = 1.7 * 0.5 * 0.45 / 1023 if name == "compressed.ply" else 0
    off = np.linalg.norm(columns[:, None] - wanted, axis=2)
    nearest = off.argmin(1)
    assert set(nearest) == set(range(len(wanted))) and (name in MESHES or len(nearest) == len(wanted))  # corners may be several
    assert off.min(1).max() <= np.sqrt(3) * step + 3 * tolerance(np.float32, FEW, 3)


def test_a_mesh_and_a_splat_meet_in_the_camera(crooked):
    """The corner of the mesh at the end of an arm is at the last Gaussian of it."""
    folder, pose = crooked
    ends = {}
    for file in ("splat.ply", "mesh.glb"):
        places = np.hstack([vertices(folder / file), np.ones((len(vertices(folder / file)), 1))])
        ends[file] = (places @ np.array(pose["matrices"][file]).T)[:, :3]
    assert np.allclose(ends["mesh.glb"][1:], ends["splat.ply"][19::20], atol=1e-5)


def test_the_file_says_how_it_is_meant(crooked):
    _, pose = crooked
    for words in ("columns", "right-handed", "4x4", "rows, as in PyTorch3D"):
        assert words in pose["convention"]
    camera = pose["camera"]
    assert camera["axes"] == "x left, y up, z away" and "not known without a point map" in camera["units"]
    assert np.array(camera["to_opencv"])[:3, :3].tolist() == np.diag([-1, -1, 1]).tolist()
    assert np.array(camera["to_opengl"])[:3, :3].tolist() == np.diag([-1, 1, -1]).tolist()
    metric = replace(result(LAMP, pose_of(CROOKED, (0, 0, 1), 1)), in_pointmap_units=True).pose_as_json()
    assert metric["camera"]["units"] == "those of the point map"


def test_points_of_the_structure_have_a_matrix_too(crooked):
    assert crooked[1]["matrices"]["structure.safetensors"] == crooked[1]["matrices"]["splat.ply"]
    assert "splat.html" not in crooked[1]["matrices"]  # whose coordinates are its own


# What views.png shows.


def photo(width=200, height=100):
    """Grey, with a mask over a third in the middle."""
    rgba = np.full((height, width, 4), 100, np.uint8)
    rgba[..., 3] = 0
    rgba[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3, 3] = 255
    return rgba


def test_the_sheet_shows_the_photo_with_its_mask_and_says_random_weights():
    lamp = splat_object(LAMP)
    plain, shown, said = (
        np.asarray(overview(lamp, None, *rest, size=150), int) for rest in ((None,), (photo(),), (photo(), None, True))
    )
    assert plain.shape[1] == shown.shape[1] == said.shape[1] == 4 * 150 + 12
    grey = (np.abs(shown - 100).max(2) <= 1).sum()
    pale = (np.abs(shown - (0.25 * 100 + 0.75 * 255)).max(2) <= 1).sum()
    area = 300 * 150
    assert abs(grey / area - 1 / 9) < 0.02 and 0.6 < pale / area < 8 / 9
    red = (shown == (200, 0, 0)).all(2)
    down, right = np.nonzero(red)
    assert np.ptp(right) < 0.4 * 300 and np.ptp(down) < 0.45 * 150 and len(down) > 200  # an outline around it
    assert not (plain == (200, 0, 0)).all(2).any()
    banner = (said[: said.shape[0] - shown.shape[0]] == (200, 0, 0)).all(2)
    assert banner.sum() > 300 and np.array_equal(said[len(said) - len(shown) :], shown)


def test_a_thumbnail_keeps_the_mask_and_what_it_leaves_out():
    small = photo()
    assert np.array_equal(thumbnail(small), small)
    large = thumbnail(np.repeat(np.repeat(small, 30, 0), 30, 1))  # 3000 x 6000
    assert large.shape == (480, 960, 4) and (large[..., :3] == 100).all()
    assert abs((large[..., 3] >= 128).mean() - (small[..., 3] >= 128).mean()) < 0.01


def test_every_view_has_its_place_below_it():
    """The captions of the four views are four different ones, and those of another object, other places."""
    lamp = splat_object(LAMP)
    sheet = np.asarray(overview(lamp, None, size=150), int)
    captions = [sheet[-40:, left : left + 150] for left in range(0, 600, 154)]
    assert all((caption.max(2) < 100).sum() > 200 for caption in captions)
    assert len({caption.tobytes() for caption in captions}) == 4
    larger = np.asarray(overview(replace(lamp, xyz=3 * lamp.xyz), None, size=150), int)
    assert not np.array_equal(larger[-20:], sheet[-20:])  # the lines with positions
    assert np.array_equal(larger[-38:-20, :150], sheet[-38:-20, :150])  # and the ones with angles


@pytest.mark.parametrize("part", ["splat", "mesh"])
def test_the_object_as_the_photo_sees_it(part):
    """Beside the photo if its pose is in the camera; the arm that points up is up, and nothing is drawn of what is behind."""
    lamp = result(LAMP, pose_of(UPRIGHT, (0.5, 0.2, 3), 1))
    both = (lamp.gaussians, None) if part == "splat" else (None, lamp.mesh)
    sheet = overview(*both, photo(), lamp.pose, size=150)
    tile = sheet.crop((300 + 4, 27, 300 + 4 + 150, 27 + 150))
    right, up = middles(tile, LAMP[::2], 120)
    assert up[1] < right[1] - 1 and right[0] > up[0] + 1
    behind = overview(*both, photo(), pose_of(UPRIGHT, (0, 0, -3), 1), size=150)
    assert np.asarray(behind.crop((304, 27, 454, 177))).min() == 255
    assert np.array_equal(np.asarray(behind), np.asarray(overview(*both, photo(), size=150)))


def test_a_camera_towards_a_box_fills_its_picture():
    low, high = np.array([-1, 0.5, 3]), np.array([0.2, 0.9, 4])
    camera = camera_towards((0, 0, 0), low, high, CAMERA)
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    pixels, depth = camera.project(corners, 100)
    assert (depth > 0).all() and np.isclose(np.abs(pixels - 50).max(), 45)
    assert abs(camera.rotation[0, 1]) < 1e-12 and camera.rotation[0, 0] < 0 and camera.rotation[1, 1] < 0  # level, upright
    # In the middle, elsewhere within, and where what is up is in line with the view.
    for position in ((-0.4, 0.7, 3.5), (0, 0.6, 3.4), (-0.4, -5, 3.5)):
        assert camera_towards(position, low, high, CAMERA) is None


def test_the_pages_and_pictures_are_equal_for_equal_input(tmp_path):
    for number in (1, 2):
        folder = tmp_path / str(number)
        replace(result(LAMP, pose_of(CROOKED, (0, 0, 3), 1)), photo=photo(), random_weights=True).save(
            folder, [*SPLATS, "html"]
        )
        write_viewer(folder / "page.html", splat_object(LAMP).in_frame(OPENCV), "page")
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert "views.png" in files and len(files) == 10  # with run.json, the list of the others
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


@pytest.mark.parametrize("part", ["splat", "mesh"])
@pytest.mark.parametrize("whole", ["object", "scene"])
@pytest.mark.parametrize("middle", [(0.5, 0.5), (0.4, 0.6)])
def test_an_object_is_in_its_place_in_the_photo_where_the_camera_is_known(part, whole, middle):
    """The end of each arm is where the intrinsics project it, in a picture of the photo's size beside it."""
    (cx, cy), fx = middle, 0.9
    camera = PhotoCamera(np.array([[fx, 0, cx], [0, 2 * fx, cy], [0, 0, 1]]), (200, 100))  # square pixels
    lamp = result(LAMP, pose_of(UPRIGHT, (0.5, 0.2, 4), 1))
    placed = lamp if whole == "object" else lamp.in_scene()
    both = (placed.gaussians, None) if part == "splat" else (None, placed.mesh)
    pose, frame = (lamp.pose, OBJECT) if whole == "object" else (None, CAMERA)
    sheet = overview(*both, photo(), pose, size=150, camera=camera, frame=frame)
    width, height = 298, 149  # of the photo, within half of the sheet
    tile = sheet.crop((width + 4, 27, 2 * width + 4, 27 + height))
    ends = lamp.in_scene().mesh.vertices[1:] @ np.diag([-1, -1, 1])  # in the axes of OpenCV
    expected = (ends / ends[:, 2:] @ camera.intrinsics.T)[:, :2] * (width, height)
    pixels = np.asarray(tile, int)
    for end, color in zip(expected[::2], LAMP[::2], strict=True):  # the arm that points away may be hidden
        down, right = np.nonzero(np.abs(pixels - color).max(2) < 120)
        assert len(down) and np.hypot(right + 0.5 - end[0], down + 0.5 - end[1]).min() < 4, (end, color)
    wide = PhotoCamera(np.array([[fx, 0, cx], [0, fx, cy], [0, 0, 1]]), (200, 100))  # pixels that are no squares
    turned = overview(*both, photo(), pose, size=150, camera=wide, frame=frame)
    assert not np.array_equal(np.asarray(turned), np.asarray(sheet))
