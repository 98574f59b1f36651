"""Simplification: how many triangles are left, where they are, what stays closed, what comes along."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.mesh.simplify import _without_folds, simplify, without_cavities


def ball(count: int = 3000, radius: float = 0.5, inside_out: bool = False, center=(0.0, 0.0, 0.0)) -> Mesh:
    """Closed, with its position as its colour."""
    points = np.random.default_rng(0).standard_normal((count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faces = ConvexHull(points).simplices
    a, b, c = points[faces.T]
    turned = (np.cross(b - a, c - a) * a).sum(1) < 0
    faces = np.where(turned[:, None] ^ inside_out, faces[:, ::-1], faces)
    colors = np.hstack([0.5 + points / 2, 0.5 - points / 2])
    return Mesh((radius * points + center).astype(np.float32), faces.astype(np.int32), colors.astype(np.float32))


def merged(*parts: Mesh) -> Mesh:
    return Mesh.merged(parts)


@pytest.mark.parametrize("triangles", [4000, 800, 100])
def test_a_ball_stays_a_closed_ball_of_fewer_triangles(triangles):
    before = ball()
    found = simplify(before, triangles)
    assert 0.95 * triangles <= len(found.faces) <= triangles
    assert found.is_watertight and np.unique(found.faces).size == len(found.vertices)
    radius = np.linalg.norm(found.vertices, axis=1)
    # A triangle of a ball of radius 1/2 with an edge e is e^2 / 4 below it in the middle; vertices come to lie on either side.
    edge = np.sqrt(4 * np.pi * 0.25 / triangles * 4 / np.sqrt(3))
    assert np.abs(radius - 0.5).max() < edge**2
    a, b, c = found.vertices[found.faces.T]
    assert ((np.cross(b - a, c - a) * (a + b + c)).sum(1) > 0).all()
    # The colour is the position of the ball: means over the patch that became a vertex.
    assert np.abs(found.vertex_attributes[:, :3] - (0.5 + found.vertices)).max() < edge
    assert found.vertex_attributes.min() >= 0 and found.vertex_attributes.max() <= 1


def test_equal_meshes_give_equal_ones_and_small_ones_stay():
    before = ball(500)
    one, other = simplify(before, 200), simplify(ball(500), 200)
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))
    assert simplify(before, len(before.faces)) is before and simplify(before, 10**9) is before
    plain = simplify(Mesh(before.vertices, before.faces), 200)
    assert plain.vertex_attributes is None and np.array_equal(plain.vertices, one.vertices)


def test_a_mesh_with_a_border_is_simplified_too():
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 30), np.linspace(-0.5, 0.5, 30), indexing="ij")
    vertices = np.stack([x, y, 0.1 * np.sin(6 * x)], -1).reshape(-1, 3).astype(np.float32)
    corner = (np.arange(29)[:, None] * 30 + np.arange(29)).reshape(-1)
    faces = np.concatenate([np.stack([corner, corner + 30, corner + 31], 1), np.stack([corner, corner + 31, corner + 1], 1)])
    found = simplify(Mesh(vertices, faces.astype(np.int32)), 300)
    assert 4 <= len(found.faces) <= 300 and not found.is_watertight
    np.testing.assert_allclose(found.vertices.min(0)[:2], -0.5, atol=0.03)
    np.testing.assert_allclose(found.vertices.max(0)[:2], 0.5, atol=0.03)


def test_folds_are_taken_out():
    corner = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
    fold = [[5, 4, 6], [4, 5, 6]]
    found = _without_folds(np.array([*corner, *fold, [7, 7, 1], [8, 9, 10], [9, 10, 8], [10, 9, 8]]))
    # Of two of one side and one of the other a single one is left.
    assert found.tolist()[:4] == corner and len(found) == 5


def test_walls_of_cavities_are_left_out():
    shell = merged(ball(400), ball(300, 0.3, inside_out=True), ball(200, 0.1), ball(100, 0.2, center=(2, 0, 0)))
    assert shell.is_watertight
    found = without_cavities(shell)
    assert found.is_watertight and len(found.faces) == len(shell.faces) - len(ball(300).faces)
    assert np.array_equal(found.vertices, merged(ball(400), ball(200, 0.1), ball(100, 0.2, center=(2, 0, 0))).vertices)
    assert len(found.vertex_attributes) == len(found.vertices)
    for mesh in (ball(50), ball(50, inside_out=True), Mesh(shell.vertices, shell.faces[1:])):
        assert without_cavities(mesh) is mesh


@pytest.mark.parametrize("triangles", [3, 0, -1, 2.5, True, "many"])
def test_too_few_triangles_are_refused(triangles):
    with pytest.raises(ValueError, match="triangles: expected an integer of at least 4, given"):
        simplify(ball(50), triangles)


def test_a_mesh_of_which_nothing_is_left_is_refused():
    parts = merged(*(ball(8, 0.01, center=(x, 0, 0)) for x in range(40)))
    with pytest.raises(ValueError, match="triangles: expected enough to keep the shape, given 4, of which nothing is left"):
        simplify(parts, 4)
