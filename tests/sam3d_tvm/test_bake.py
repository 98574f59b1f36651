"""Textures: every texel has the colour of its place, seams are filled, files as other libraries read them, the same bytes."""

import hashlib
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from sam3d_tvm.mesh.bake import (
    Surface,
    TexturedMesh,
    _pull_push,
    bake,
    bake_cameras,
    gaussians_of,
    textured_picture,
)
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.mesh.picture import mesh_picture
from sam3d_tvm.mesh.textured_files import save_mtl, save_textured_glb, save_textured_obj
from sam3d_tvm.mesh.unwrap import unwrap
from sam3d_tvm.outputs import Result, save_scene
from sam3d_tvm.pose import Pose
from sam3d_tvm.splat.cameras import orbit_box
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians
from sam3d_tvm.splat.picture import splat_picture
from tests.sam3d_tvm.test_mesh import CORNER, LAMP, SECOND, TABLE, glb_parts
from tests.sam3d_tvm.test_simplify import ball

SMALL = {"texture_size": 128, "views": 24}


def painted(points: np.ndarray) -> np.ndarray:
    """A colour for every place of a ball, that has no symmetry."""
    x, y, z = np.asarray(points, float).T
    return np.stack([0.5 + 0.8 * x, 0.5 + 0.6 * y + 0.2 * z, 0.5 - 0.7 * z + 0.2 * x], -1)


def gaussians_on_ball(count: int = 20_000) -> Gaussians:
    rng = np.random.default_rng(1)
    points = rng.standard_normal((count, 3))
    points /= 2 * np.linalg.norm(points, axis=1, keepdims=True)
    return Gaussians(
        points,
        (painted(points) - 0.5) / CONSTANT_HARMONIC,
        np.full(count, 3.0),
        np.full((count, 3), np.log(0.008)),
        np.tile([1.0, 0, 0, 0], (count, 1)),
    )


@pytest.fixture(scope="module")
def textured() -> TexturedMesh:
    """A ball of 5,996 triangles and colours that are wrong, of which 1,000 are left, with those of the Gaussians."""
    mesh = ball(3000)
    return bake(replace(mesh, vertex_attributes=1 - mesh.vertex_attributes), gaussians_on_ball(), 1000, **SMALL)


def texture_at(mesh: TexturedMesh, weights) -> tuple[np.ndarray, np.ndarray]:
    """Places within all faces, and the colours of the nearest texels."""
    weights = np.asarray(weights)
    points, uv = (np.einsum("v,fvc->fc", weights, values[mesh.faces]) for values in (mesh.vertices, mesh.uv))
    column, row = np.clip((uv * len(mesh.texture)).astype(int), 0, len(mesh.texture) - 1).T
    return points, mesh.texture[row, column] / 255


def test_texels_have_the_colours_of_the_gaussians(textured):
    assert 950 <= len(textured.faces) <= 1000 and textured.is_watertight
    assert textured.texture.shape == (128, 128, 3) and textured.texture.dtype == np.uint8
    for weights in ([1 / 3, 1 / 3, 1 / 3], [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]):
        points, colors = texture_at(textured, weights)
        # A texel is some 0.02 wide, the blur of a Gaussian 0.008 and of a view's pixel 0.005: colours change by 0.8 a unit.
        error = np.abs(colors - painted(points / (2 * np.linalg.norm(points, axis=1, keepdims=True))))
        assert error.max() < 0.05 and error.mean() < 0.012


def test_a_textured_mesh_looks_like_the_splat_from_places_it_was_not_baked_from(textured):
    camera = orbit_box([-0.5] * 3, [0.5] * 3, 5, 13.0)[3]
    middle = np.s_[25:75, 25:75]  # without the outline
    shown, wrong = textured_picture(textured, camera, 100), mesh_picture(textured.mesh, camera, 100, light=False)
    wanted = np.asarray(splat_picture(gaussians_on_ball(), camera, 100), float)[middle]
    assert np.abs(np.asarray(shown, float)[middle] - wanted).mean() < 255 * 0.012
    assert np.abs(np.asarray(wrong, float)[middle] - wanted).mean() > 255 * 0.1


def test_vertex_colours_are_baked_where_there_are_no_gaussians():
    found = bake(ball(3000), None, 1000, **SMALL)
    points, colors = texture_at(found, [1 / 3] * 3)
    error = np.abs(colors - (0.5 + points / (2 * np.linalg.norm(points, axis=1, keepdims=True))))
    assert error.mean() < 0.02 and error.max() < 0.08


def test_a_mesh_of_few_triangles_keeps_its_colours_exactly():
    found = bake(CORNER, None, 4, texture_size=256)
    assert found.mesh is CORNER
    for weights in ([0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]):
        _, colors = texture_at(found, weights)
        expected = np.einsum("v,fvc->fc", weights, CORNER.vertex_attributes[CORNER.faces][..., :3])
        assert np.abs(colors - expected).max() < 0.02  # half a texel of an edge of some 100


def test_what_no_view_sees_has_the_colours_of_the_mesh():
    # A box within a ball, both closed and the right way round: its faces are seen from nowhere.
    inner = replace(ball(60, 0.2), vertex_attributes=np.full((60, 6), 0.25, np.float32))
    found = bake(Mesh.merged([ball(500), inner]), gaussians_on_ball(), **SMALL)
    points, colors = texture_at(found, [1 / 3] * 3)
    hidden = np.linalg.norm(points, axis=1) < 0.3
    assert hidden.sum() == len(inner.faces) and np.abs(colors[hidden] - 0.25).max() < 0.01
    assert np.abs(colors[~hidden] - painted(points[~hidden])).mean() < 0.03
    # Without colours of its own: of what is around it, rather than black.
    plain = bake(replace(found.mesh, vertex_attributes=None), gaussians_on_ball(), **SMALL)
    assert texture_at(plain, [1 / 3] * 3)[1][hidden].max(1).min() > 0.1


def test_seams_and_gutters_are_filled_from_the_charts():
    canvas = np.zeros((7, 7, 4), np.float32)
    canvas[:3, :3] = [1, 0, 0, 1]
    canvas[5:, 5:] = [0, 0, 1, 1]
    filled = _pull_push(canvas)
    assert np.array_equal(filled[:3, :3], canvas[:3, :3, :3]) and np.array_equal(filled[5:, 5:], canvas[5:, 5:, :3])
    np.testing.assert_allclose(filled.sum(-1), 1, atol=1e-5)  # means of the two
    assert filled[3, 0, 0] > 0.8 and filled[4, 6, 2] > 0.5
    assert (_pull_push(np.zeros((4, 4, 4), np.float32)) == 0).all()
    one = np.zeros((16, 16, 4), np.float32)
    one[3, 4] = [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(_pull_push(one), np.broadcast_to([0.25, 0.5, 0.75], (16, 16, 3)), atol=1e-6)


def test_texels_beside_a_chart_are_like_its_border(textured):
    """What a viewer that reads between texels, or a smaller copy of the texture, mixes in."""
    for face, where in zip(textured.faces, textured.uv[textured.faces], strict=True):
        edge = where.mean(0) + 1.02 * (where[0] - where.mean(0))
        row, column = np.clip((edge[::-1] * 128).astype(int), 0, 127)
        near = painted(textured.vertices[face[:1]] / np.linalg.norm(textured.vertices[face[0]]) / 2)
        assert np.abs(textured.texture[row, column] / 255 - near).max() < 0.1


def test_charts_keep_faces_and_do_not_overlap():
    mesh = ball(400)
    corners, faces, uv = unwrap(mesh, 256)
    assert np.array_equal(corners[faces], mesh.faces)
    assert uv.min() >= 0 and uv.max() <= 1 and len(uv) == len(corners) > len(mesh.vertices)
    first, second, third = (256 * uv[faces].astype(float)).transpose(1, 0, 2)
    areas = np.abs(np.cross(np.c_[second - first, np.zeros(len(faces))], np.c_[third - first, np.zeros(len(faces))])[:, 2]) / 2
    canvas = np.zeros((256, 256), int)
    for face in 256 * uv[faces].astype(float):
        low, high = np.floor(face.min(0)).astype(int), np.ceil(face.max(0)).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        sides = [
            (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in zip(face, np.roll(face, -1, 0), strict=True)
        ]
        inside = (np.min(sides, 0) > 1e-6) | (np.max(sides, 0) < -1e-6)
        canvas[y[inside].astype(int), x[inside].astype(int)] += 1
    assert canvas.max() == 1 and abs(canvas.sum() - areas.sum()) < 0.1 * areas.sum()


def test_cameras_are_all_around_and_see_all_of_the_mesh():
    mesh = CORNER
    directions = []
    for camera in bake_cameras(mesh, 40):
        pixels, depth = camera.project(mesh.vertices, 100)
        assert (depth > 0).all() and pixels.min() >= 0 and pixels.max() <= 100 and np.ptp(pixels, 0).max() > 40
        directions.append(camera.rotation[2])
    cosines = np.array(directions) @ np.array(directions).T
    assert np.sort(cosines, 1)[:, -2].min() > 0.8  # every one has a neighbour
    assert np.linalg.norm(np.mean(directions, 0)) < 0.05


def test_gaussians_of_a_mesh_lie_flat_on_it():
    mesh = ball(300)
    found = gaussians_of(mesh)
    assert np.array_equal(found.xyz, mesh.vertices)
    np.testing.assert_allclose(found.colors, mesh.vertex_attributes[:, :3], atol=1e-6)
    normals = mesh.vertex_normals.astype(float)
    xx, xy, xz, yy, yz, zz = found.covariance.T.astype(float)
    matrices = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]).transpose(2, 0, 1)
    along = np.einsum("ni,nij,nj->n", normals, matrices, normals)
    np.testing.assert_allclose(along * 100, np.trace(matrices, axis1=1, axis2=2) / 2.01, rtol=1e-2)


def digest(mesh: TexturedMesh) -> str:
    return hashlib.sha256(b"".join([mesh.png, mesh.faces.tobytes(), mesh.uv.tobytes(), mesh.vertices.tobytes()])).hexdigest()


SCRIPT = """
import os
if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from tests.sam3d_tvm.test_bake import SMALL, bake, ball, digest, gaussians_on_ball
print(digest(bake(ball(600), gaussians_on_ball(), 300, **SMALL)))
"""


def test_the_same_bytes_on_one_core_and_on_all():
    here = digest(bake(ball(600), gaussians_on_ball(), 300, **SMALL))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TVM_NUM_THREADS": "1"},
    )
    assert done.stdout.strip() == here, done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"triangles": 3}, "triangles: expected an integer of at least 4, given 3"),
        ({"texture_size": 15}, "texture_size: expected an integer of at least 16, given 15"),
        ({"texture_size": 8193}, "texture_size: expected an integer from 16 to 8192, given 8193"),
        ({"views": 0}, "views: expected an integer of at least 1, given 0"),
        (
            {"mesh": Mesh(CORNER.vertices, CORNER.faces[:0])},
            "mesh: expected at least one face to bake a texture for, given none",
        ),
        ({"mesh": Mesh(CORNER.vertices, CORNER.faces)}, "mesh: expected colours at its vertices where there are no Gaussians"),
    ],
)
def test_bad_arguments(options, says):
    with pytest.raises(ValueError, match=says):
        bake(**{"mesh": CORNER, **options})
    if set(options) <= {"triangles", "texture_size"}:
        with pytest.raises(ValueError, match=says):
            Surface(**options)


@pytest.fixture(scope="module")
def corner() -> TexturedMesh:
    return bake(CORNER, None, 4, texture_size=256)


def near_corners(visual_colors, faces):
    """sRGB of a textured mesh near every corner of its faces, without the rim of a chart."""
    return np.asarray(visual_colors)[faces][..., :3]


def check_textured(read: trimesh.Trimesh, vertices: np.ndarray, mesh: Mesh = CORNER) -> None:
    """A trimesh with a texture against the mesh that it was, its vertices in the file's axes."""
    triangles = vertices[mesh.faces]
    order = [int(np.abs(read.triangles - triangle).max((1, 2)).argmin()) for triangle in triangles]
    assert sorted(order) == list(range(len(triangles)))
    np.testing.assert_allclose(read.triangles[order], triangles, atol=1e-5)
    image = read.visual.material.baseColorTexture if hasattr(read.visual.material, "baseColorTexture") else None
    image = np.asarray((image or read.visual.material.image).convert("RGB"), float) / 255
    for weights in ([0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]):
        uv = np.einsum("v,fvc->fc", weights, read.visual.uv[read.faces[order]])
        column, row = (uv * [1, -1] + [0, 1]).T * len(image)  # trimesh's from the bottom left
        colors = image[row.astype(int), column.astype(int)]
        assert np.abs(colors - np.einsum("v,fvc->fc", weights, mesh.vertex_attributes[mesh.faces][..., :3])).max() < 0.02


Y_UP = CORNER.vertices[:, [0, 2, 1]] * [1, 1, -1]


def test_glb_as_other_libraries_read_it(corner, tmp_path):
    save_textured_glb(tmp_path / "t.glb", [("mesh", corner, None)])
    read = trimesh.load_mesh(tmp_path / "t.glb", process=False)
    check_textured(read, Y_UP)
    material = read.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (0, 1)
    tree, values = glb_parts(tmp_path / "t.glb")
    (primitive,) = tree["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"} and primitive["material"] == 0
    image = tree["images"][0]
    assert image["mimeType"] == "image/png" and "target" not in tree["bufferViews"][image["bufferView"]]
    normals = values(primitive["attributes"]["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    # Every vertex of the cut mesh has the normal of the whole one.
    np.testing.assert_allclose(normals, (CORNER.vertex_normals[:, [0, 2, 1]] * [1, 1, -1])[corner.corners], atol=1e-6)


def test_obj_as_other_libraries_read_it(corner, tmp_path):
    save_textured_obj(tmp_path / "t.obj", [("mesh", corner, None)])
    save_mtl(tmp_path / "t.mtl", ["picture.png"])
    (tmp_path / "picture.png").write_bytes(corner.png)
    read = trimesh.load_mesh(tmp_path / "t.obj", process=False)
    check_textured(read, Y_UP)
    assert (tmp_path / "t.obj").read_text().startswith("# x right, y up, z towards the viewer\nmtllib t.mtl\n")


def result(mesh: Mesh, pose: Pose, name: str) -> Result:
    """With Gaussians along the edges, which no view takes for the faces: textures have the colours of the mesh."""
    return Result(np.int32([[0, 1, 2, 3]]), 64, pose, np.zeros((1, 8), np.float32), far_away(), None, mesh, name=name)


def far_away() -> Gaussians:
    return Gaussians([[50.0, 0, 0]], [[0.0, 0, 0]], [0.0], [[-5.0] * 3], [[1.0, 0, 0, 0]])


def test_results_and_scenes_have_textured_files(tmp_path):
    results = [result(CORNER, LAMP, "lamp"), result(SECOND, TABLE, "a table")]
    results = [replace(found, surface=Surface(None, 256)) for found in results]
    written = save_scene(results, tmp_path, ["textured.glb", "textured.obj"])
    names = {str(path.relative_to(tmp_path)) for path in written}
    each = {"textured.glb", "textured.obj", "textured.mtl", "textured.png", "structure.safetensors", "pose.json", "views.png"}
    scene = {"scene_textured.glb", "scene_textured.obj", "scene_textured.mtl"}
    assert names == scene | {f"object_{number}/{name}" for number in (1, 2) for name in each}
    check_textured(trimesh.load_mesh(tmp_path / "object_1" / "textured.glb", process=False), Y_UP)
    check_textured(trimesh.load_mesh(tmp_path / "object_1" / "textured.obj", process=False), Y_UP)
    tree, _ = glb_parts(tmp_path / "scene_textured.glb")
    assert [node["name"] for node in tree["nodes"]] == ["lamp", "a table"]
    placed = [found.mesh.transformed(found.pose.matrix()[0]).vertices for found in results]
    for name in ("scene_textured.glb", "scene_textured.obj"):
        read = trimesh.load_scene(tmp_path / name, process=False)
        parts = sorted(read.dump(), key=lambda part: -part.vertices[:, 1].mean())  # the lamp is above the table
        for part, vertices, mesh in zip(parts, placed, (CORNER, SECOND), strict=True):
            check_textured(part, vertices, mesh)


def test_a_texture_is_baked_once_and_options_make_another(monkeypatch, tmp_path):
    from sam3d_tvm import outputs

    calls = []
    monkeypatch.setattr(outputs, "bake", lambda *arguments: calls.append(arguments[2:]) or bake(*arguments))
    found = result(CORNER, LAMP, "lamp")
    assert found.baked is None
    written = found.save(tmp_path, ["textured.glb", "textured.obj"], texture_size=64)
    assert calls == [(20_000, 64)] and {path.name for path in written} >= {"textured.png", "textured.mtl"}
    assert Image.open(io.BytesIO((tmp_path / "textured.png").read_bytes())).size == (64, 64)
    found.save(tmp_path, ["textured.glb"], triangles=4, texture_size=32)
    replace(found, name="other").save(tmp_path / "other", ["textured.glb"], triangles=4, texture_size=32)
    assert calls[1:] == [(4, 32)]
    found.save(tmp_path, ["glb", "stl"], triangles=4)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="texture_size: expected an integer from 16 to 8192, given 9000"):
        found.save(tmp_path, ["textured.glb"], texture_size=9000)


def test_plain_meshes_have_fewer_triangles_if_asked(tmp_path):
    found = result(ball(300), LAMP, "ball")
    found.save(tmp_path / "all", ["glb", "stl"])
    found.save(tmp_path / "few", ["glb", "stl"], triangles=100)
    for name in ("mesh.glb", "mesh.stl"):
        assert len(trimesh.load_mesh(tmp_path / "all" / name).faces) == len(found.mesh.faces)
        few = trimesh.load_mesh(tmp_path / "few" / name)
        assert 90 <= len(few.faces) <= 100 and few.is_watertight
