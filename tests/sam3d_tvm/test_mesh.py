"""Meshes: normals, closedness, moving them, and files as other libraries read them."""

import json
import re

import numpy as np
import plyfile
import pytest
import trimesh

from sam3d_tvm.mesh.mesh import Mesh, save_mesh
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


def test_glb_is_y_up_and_its_colors_are_linear(tmp_path):
    save_mesh(tmp_path / "corner.glb", CORNER)
    (read,) = trimesh.load_scene(tmp_path / "corner.glb").geometry.values()
    x, y, z = VERTICES.T
    assert np.array_equal(read.vertices, np.stack([x, z, -y], 1))
    assert np.array_equal(read.faces, FACES)
    assert_close(read.vertex_normals, CORNER.vertex_normals[:, [0, 2, 1]] * [1, 1, -1], dtype=np.float32)
    assert read.is_watertight and read.volume > 0
    # By the definition of sRGB, backwards.
    linear = read.visual.vertex_attributes["color"].astype(np.float64)
    colors = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(colors, COLORS, atol=1e-6)
    assert (read.visual.material.metallicFactor, read.visual.material.roughnessFactor) == (0, 1)


def test_glb_names_what_gltf_defines(tmp_path):
    save_mesh(tmp_path / "corner.glb", CORNER)
    data = (tmp_path / "corner.glb").read_bytes()
    header = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    (primitive,) = header["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    color = header["accessors"][primitive["attributes"]["COLOR_0"]]
    assert (color["componentType"], color["type"], color["count"]) == (5126, "VEC3", 4)  # float
    assert header["asset"]["version"] == "2.0"


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


@pytest.mark.parametrize("suffix", ["glb", "ply", "PLY"])
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
    assert (read.visual.kind is not None) == (attributes is not None or suffix == "glb")  # a material is a visual, too


@pytest.mark.parametrize(
    ("name", "mesh", "says"),
    [
        ("mesh.obj", CORNER, "the suffix of path: expected one of '.glb', '.ply', given '.obj'"),
        ("mesh", CORNER, "the suffix of path: expected one of '.glb', '.ply', given ''"),
        ("mesh.glb", Mesh(VERTICES, FACES[:0]), "mesh: expected at least one face to write, given none"),
        ("mesh.ply", Mesh(VERTICES[:0], FACES[:0]), "mesh: expected at least one face to write, given none"),
        ("file/mesh.ply", CORNER, "path: expected a folder at"),
    ],
)
def test_what_cannot_be_saved(tmp_path, name, mesh, says):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=re.escape(says)):
        save_mesh(tmp_path / name, mesh)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
