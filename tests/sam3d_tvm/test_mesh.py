"""Meshes: normals, closedness, moving them, and files as other libraries read them."""

import json
import re

import numpy as np
import plyfile
import pytest
import trimesh

from sam3d_tvm.mesh.mesh import Mesh, save_mesh, save_mesh_scene
from sam3d_tvm.pose import Pose
from tests.tolerance import assert_close

# A corner of a cube, cut off: faces in the planes x = 0, y = 0, z = 0 and x / 2 + y / 3 + z / 6 = 1.
VERTICES = np.float32([[0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 6]])
FACES = np.int32([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
COLORS = np.float32([[0, 0.5, 1], [1, 0.25, 0], [0.02, 0.03, 0.04], [0.6, 0.7, 0.8]])
CORNER = Mesh(VERTICES, FACES, np.hstack([COLORS, 1 - COLORS]))


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def test_normals_point_outside_and_weigh_faces_by_area():
    slanted = np.array([3, 2, 1]) / np.sqrt(14)
    assert_close(CORNER.face_normals, np.float32([[0, 0, -1], [0, -1, 0], [-1, 0, 0], slanted]), 3)
    # Twice the areas of the first three are 6, 12 and 18; their sum with the fourth is 0.
    sums = np.array([[-18, -12, -6], [18, 0, 0], [0, 12, 0], [0, 0, 6]])
    assert_close(CORNER.vertex_normals, (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32), 3, scale=2)
    assert CORNER.face_normals.dtype == CORNER.vertex_normals.dtype == np.float32


def test_what_has_no_area_has_no_normal():
    flat = Mesh(np.float32([[0, 0, 0], [1, 1, 1], [2, 2, 2], [5, 0, 0]]), np.int32([[0, 1, 2]]))
    assert not flat.face_normals.any() and not flat.vertex_normals.any()


def test_colors_are_rounded():
    assert CORNER.colors.dtype == np.uint8
    assert CORNER.colors.tolist() == [[0, 128, 255], [255, 64, 0], [5, 8, 10], [153, 178, 204]]
    assert Mesh(VERTICES, FACES).colors is None


@pytest.mark.parametrize(
    ("faces", "closed"),
    [
        (FACES, True),
        (np.zeros((0, 3), np.int32), True),
        (FACES[:3], False),
        (np.vstack([FACES[:3], FACES[3:, ::-1]]), False),  # one face is turned
        (np.vstack([FACES, FACES]), False),  # everything twice
        (np.int32([[0, 1, 2], [0, 2, 1]]), True),  # both sides of a triangle
    ],
)
def test_watertight(faces, closed):
    assert Mesh(VERTICES, faces).is_watertight is closed


def test_transformed_as_a_pose_moves_points():
    pose = Pose(np.float32([[0.5, 0.5, -0.5, 0.5]]), translation=np.float32([[1, -2, 3]]), scale=np.float32([[0.5, 2, 3]]))
    moved = CORNER.transformed(pose.matrix()[0])
    assert_close(moved.vertices, VERTICES * pose.scale @ pose.rotation_matrix[0] + pose.translation, 3)
    assert moved.vertices.dtype == np.float32
    assert moved.faces is CORNER.faces and moved.vertex_attributes is CORNER.vertex_attributes
    assert np.array_equal(CORNER.transformed(np.eye(4)).vertices, VERTICES)


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.eye(3), r"matrix: expected numbers \[4, 4\], given float64 \[3, 3\]"),
        (np.full((4, 4), np.nan), "matrix: expected finite values, given 16 that are not"),
        (changed(np.eye(4), (0, 3), 1.0), r"matrix: expected \(0, 0, 0, 1\) as its last column, given \[1.0, 0.0, 0.0, 1.0\]"),
        (np.diag([1, 1, -1, 1]), "matrix: expected a determinant above 0, given -1"),
    ],
)
def test_bad_matrix(matrix, says):
    with pytest.raises(ValueError, match=says):
        CORNER.transformed(matrix)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vertices": VERTICES.tolist()}, r"vertices: expected float32 \[any, 3\], given list"),
        ({"vertices": VERTICES.astype(float)}, r"vertices: expected float32 \[any, 3\], given float64 \[4, 3\]"),
        ({"vertices": VERTICES[:, :2]}, r"vertices: expected float32 \[any, 3\], given float32 \[4, 2\]"),
        ({"vertices": changed(VERTICES, 0, np.inf)}, "vertices: expected finite values, given 3 that are not"),
        ({"faces": FACES.astype(np.int64)}, r"faces: expected int32 \[any, 3\], given int64 \[4, 3\]"),
        ({"faces": FACES + np.int32(1)}, "faces: expected vertices from 0 to 3, given 0 to 4"),
        ({"faces": FACES - np.int32(1)}, "faces: expected vertices from 0 to 3, given -1 to 2"),
        ({"faces": changed(FACES, (2, 0), 2)}, r"faces: expected three different vertices, given \[2, 3, 2\] in row 2"),
        ({"vertex_attributes": COLORS}, r"vertex_attributes: expected float32 \[4, 6\], given float32 \[4, 3\]"),
        (
            {"vertex_attributes": np.full((4, 6), 1.5, np.float32)},
            "vertex_attributes: expected values from 0 to 1, given 0.0 to 1.5",
        ),
        (
            {"vertex_attributes": np.full((4, 6), np.nan, np.float32)},
            "vertex_attributes: expected values from 0 to 1, given nan",
        ),
    ],
)
def test_bad_mesh(change, says):
    with pytest.raises(ValueError, match=says):
        Mesh(**{"vertices": VERTICES, "faces": FACES, "vertex_attributes": CORNER.vertex_attributes} | change)


def srgb(linear):
    """By the definition of sRGB, backwards."""
    linear = np.asarray(linear, np.float64)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def glb_parts(path):
    """The JSON of a .glb file, and a function from the number of an accessor to its values."""
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    tree, binary = json.loads(data[20 : 20 + length]), data[28 + length :]
    assert data[:8] == b"glTF\x02\0\0\0" and int.from_bytes(data[8:12], "little") == len(data) and len(data) % 4 == 0
    assert len(binary) == int.from_bytes(data[20 + length : 24 + length], "little") >= tree["buffers"][0]["byteLength"]

    def values(number):
        accessor = tree["accessors"][number]
        view = tree["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        found = np.frombuffer(binary[view["byteOffset"] :][: view["byteLength"]], dtype)
        return found.reshape(accessor["count"], {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[accessor["type"]])

    return tree, values


def test_glb_is_y_up_and_its_colors_are_linear(tmp_path):
    save_mesh(tmp_path / "corner.glb", CORNER)
    (read,) = trimesh.load_scene(tmp_path / "corner.glb").geometry.values()
    x, y, z = VERTICES.T
    assert np.array_equal(read.vertices, np.stack([x, z, -y], 1))
    assert np.array_equal(read.faces, FACES)
    assert_close(read.vertex_normals, CORNER.vertex_normals[:, [0, 2, 1]] * [1, 1, -1], dtype=np.float32)
    assert read.is_watertight and read.volume > 0
    tree, values = glb_parts(tmp_path / "corner.glb")
    linear = values(tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"])
    np.testing.assert_allclose(srgb(linear), COLORS, atol=1e-6)


def test_trimesh_takes_the_colors_of_a_glb_along(tmp_path):
    save_mesh(tmp_path / "corner.glb", CORNER)
    linear = np.where(COLORS <= 0.04045, COLORS / 12.92, ((COLORS + 0.055) / 1.055) ** 2.4)
    for read in (trimesh.load_mesh(tmp_path / "corner.glb"), trimesh.load(tmp_path / "corner.glb")):
        read.export(tmp_path / "again.ply")
        again = trimesh.load_mesh(tmp_path / "again.ply", process=False)
        assert again.visual.kind == "vertex"
        assert np.array_equal(again.visual.vertex_colors[:, :3], np.rint(255 * linear))
    # As docs/pipeline.md says. A step of linear light is up to 13 steps of the darkest sRGB.
    back = trimesh.visual.color.linear_to_srgb(again.visual.vertex_colors[:, :3])
    np.testing.assert_allclose(back, COLORS, atol=12.92 / 255 / 2)


def test_glb_names_what_gltf_defines(tmp_path):
    save_mesh(tmp_path / "corner.glb", CORNER)
    tree, _ = glb_parts(tmp_path / "corner.glb")
    (primitive,) = tree["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    color = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    assert (color["componentType"], color["type"], color["count"]) == (5126, "VEC3", 4)  # float
    position = tree["accessors"][primitive["attributes"]["POSITION"]]
    assert (position["min"], position["max"]) == ([0, 0, -3], [2, 6, 0])
    assert tree["asset"]["version"] == "2.0" and "materials" not in tree
    assert all(view["byteOffset"] % 4 == 0 for view in tree["bufferViews"])


def test_a_glb_without_normals_of_its_own_has_unit_normals(tmp_path):
    thin = np.int32([[0, 1, 2], [0, 2, 1]])  # both sides: normals cancel
    save_mesh(tmp_path / "thin.glb", Mesh(VERTICES[:3], thin))
    tree, values = glb_parts(tmp_path / "thin.glb")
    normals = values(tree["meshes"][0]["primitives"][0]["attributes"]["NORMAL"])
    assert np.array_equal(normals, [[0, 1, 0]] * 3)


def test_obj_is_y_up_with_srgb_colors(tmp_path):
    save_mesh(tmp_path / "corner.obj", CORNER)
    read = trimesh.load_mesh(tmp_path / "corner.obj", process=False)
    x, y, z = VERTICES.T
    assert np.array_equal(read.vertices, np.stack([x, z, -y], 1))
    assert np.array_equal(read.faces, FACES)
    assert read.is_watertight and read.volume > 0
    np.testing.assert_allclose(read.visual.vertex_colors[:, :3], 255 * COLORS, atol=0.5)
    lines = (tmp_path / "corner.obj").read_text().splitlines()
    normals = np.array([line.split()[1:] for line in lines if line.startswith("vn ")], float)  # trimesh makes its own
    np.testing.assert_allclose(normals, CORNER.vertex_normals[:, [0, 2, 1]] * [1, 1, -1], atol=1e-6)
    assert [line.split()[1:] for line in lines if line.startswith("f ")] == [[f"{i + 1}//{i + 1}" for i in f] for f in FACES]
    assert "x right, y up, z towards the viewer" in lines[0] and lines[1] == "o mesh"
    assert lines[2].split() == ["v", "0", "0", "0", "0", "0.5", "1"]


def test_stl_keeps_axes(tmp_path):
    save_mesh(tmp_path / "corner.stl", CORNER)
    assert (tmp_path / "corner.stl").stat().st_size == 84 + 50 * len(FACES)  # binary
    read = trimesh.load_mesh(tmp_path / "corner.stl", process=False)
    assert np.array_equal(read.triangles, VERTICES[FACES])
    assert_close(read.face_normals, CORNER.face_normals, 3, dtype=np.float32)


LAMP = Pose(np.float32([[0.5, 0.5, -0.5, 0.5]]), translation=np.float32([[0, 1, 3]]), scale=np.float32([[0.5, 0.25, 0.125]]))
TABLE = Pose(np.float32([[1, 0, 0, 0]]), translation=np.float32([[0, -1, 3]]), scale=np.float32([[0.1, 0.1, 0.1]]))
SECOND = Mesh(VERTICES * np.float32([1, 2, 0.5]), FACES, 1 - CORNER.vertex_attributes)
SCENE = [("lamp", CORNER, LAMP.matrix()[0]), ("a table\nof two lines", SECOND, TABLE.matrix()[0])]


def in_scene(mesh, pose):
    return mesh.vertices * pose.scale @ pose.rotation_matrix[0] + pose.translation


@pytest.mark.parametrize("suffix", ["glb", "ply", "obj", "stl"])
def test_a_scene_is_in_the_axes_of_its_poses(tmp_path, suffix):
    save_mesh_scene(tmp_path / f"scene.{suffix}", SCENE)
    wanted = np.vstack([in_scene(CORNER, LAMP)[FACES], in_scene(SECOND, TABLE)[FACES]])  # [F, 3, 3]
    read = trimesh.load_mesh(tmp_path / f"scene.{suffix}", process=False)
    triangles = np.asarray(read.triangles)
    if suffix == "glb" and triangles[:, :, 1].mean(1)[0] < 0:  # trimesh may take the nodes in any order
        triangles = np.roll(triangles, len(FACES), 0)
    assert_close(triangles, wanted, 4, scale=4, dtype=np.float32)
    assert all(part.volume > 0 for part in read.split())
    if suffix in ("ply", "obj"):
        colors = np.vstack([mesh.vertex_attributes[FACES, :3] for mesh in (CORNER, SECOND)])
        np.testing.assert_allclose(read.visual.vertex_colors[read.faces][..., :3], 255 * colors, atol=0.5 + 1e-4)


def test_a_scene_as_glb_has_a_node_an_object_with_its_pose(tmp_path):
    save_mesh_scene(tmp_path / "scene.glb", SCENE)
    save_mesh(tmp_path / "corner.glb", CORNER)
    tree, values = glb_parts(tmp_path / "scene.glb")
    assert [node["name"] for node in tree["nodes"]] == [name for name, *_ in SCENE]
    assert tree["scenes"][tree["scene"]]["nodes"] == [0, 1]
    alone, alone_values = glb_parts(tmp_path / "corner.glb")
    for name, number in tree["meshes"][0]["primitives"][0]["attributes"].items():
        assert np.array_equal(values(number), alone_values(alone["meshes"][0]["primitives"][0]["attributes"][name]))
    for node, (_, mesh, _), pose in zip(tree["nodes"], SCENE, (LAMP, TABLE), strict=True):
        matrix = np.reshape(node["matrix"], (4, 4)).T  # stored by columns
        positions = values(tree["meshes"][node["mesh"]]["primitives"][0]["attributes"]["POSITION"])
        placed = matrix @ np.vstack([positions.T, np.ones(len(positions))])
        assert_close(placed[:3].T, in_scene(mesh, pose), 4, scale=4, dtype=np.float32)
        # glTF asks for a product of translation, rotation and scale.
        axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
        assert np.linalg.det(axes) > 0
    assert matrix[1, 3] == -1 and np.reshape(tree["nodes"][0]["matrix"], (4, 4))[3, 1] == 1


def test_a_scene_as_obj_has_a_group_an_object(tmp_path):
    save_mesh_scene(tmp_path / "scene.obj", SCENE)
    groups = [line for line in (tmp_path / "scene.obj").read_text().splitlines() if line.startswith("o ")]
    assert groups == ["o lamp", "o a table of two lines"]
    assert (tmp_path / "scene.obj").read_text().startswith("# x left, y up, z away;")


def test_a_scene_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="objects: expected at least one, given none"):
        save_mesh_scene(tmp_path / "scene.glb", [])
    with pytest.raises(ValueError, match="mesh: expected at least one face"):
        save_mesh_scene(tmp_path / "scene.glb", [*SCENE, ("none", Mesh(VERTICES, FACES[:0]), np.eye(4))])


def test_ply_keeps_axes_and_colors(tmp_path):
    save_mesh(tmp_path / "corner.ply", CORNER)
    read = plyfile.PlyData.read(tmp_path / "corner.ply")
    assert not read.text and read.byte_order == "<"
    columns = read["vertex"].data
    assert np.array_equal(np.stack([columns[name] for name in "xyz"], 1), VERTICES)
    assert np.array_equal(np.stack([columns[name] for name in ("nx", "ny", "nz")], 1), CORNER.vertex_normals)
    assert np.array_equal(np.stack([columns[name] for name in ("red", "green", "blue")], 1), CORNER.colors)
    assert (columns["alpha"] == 255).all()
    assert np.array_equal(np.stack(read["face"].data["vertex_indices"]), FACES)


@pytest.mark.parametrize("suffix", ["glb", "ply", "PLY", "obj", "stl"])
@pytest.mark.parametrize("attributes", [None, CORNER.vertex_attributes])
def test_files_are_whole_and_repeatable(tmp_path, suffix, attributes):
    mesh = Mesh(VERTICES, FACES, attributes)
    first, second = (tmp_path / name / f"mesh.{suffix}" for name in ("a", "b"))
    save_mesh(first, mesh)
    second.parent.mkdir()
    second.write_bytes(b"older")
    save_mesh(second, mesh)
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in second.parent.iterdir()] == [second.name]
    read = trimesh.load_mesh(first)
    assert read.vertices.shape == (4, 3) and read.is_watertight
    assert (read.visual.kind == "vertex") == (attributes is not None and suffix != "stl")


@pytest.mark.parametrize(
    ("name", "mesh", "says"),
    [
        ("mesh.off", CORNER, "the suffix of path: expected one of '.glb', '.ply', '.obj', '.stl', given '.off'"),
        ("mesh", CORNER, "the suffix of path: expected one of '.glb', '.ply', '.obj', '.stl', given ''"),
        ("mesh.glb", Mesh(VERTICES, FACES[:0]), "mesh: expected at least one face to write, given none"),
        ("mesh.ply", Mesh(VERTICES[:0], FACES[:0]), "mesh: expected at least one face to write, given none"),
        ("mesh.stl", Mesh(VERTICES[:0], FACES[:0]), "mesh: expected at least one face to write, given none"),
        ("mesh.obj", Mesh(VERTICES[:0], FACES[:0]), "mesh: expected at least one face to write, given none"),
        ("file/mesh.ply", CORNER, "path: expected a folder at"),
    ],
)
def test_what_cannot_be_saved(tmp_path, name, mesh, says):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=re.escape(says)):
        save_mesh(tmp_path / name, mesh)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
