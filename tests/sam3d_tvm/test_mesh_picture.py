"""Pictures of meshes: where things are, what hides what, perspective, no gaps, the same bytes again."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.mesh.picture import GREY, SHADOW, TO_LIGHT, mesh_picture
from sam3d_tvm.splat.cameras import Camera, orbit

AHEAD = Camera(np.eye(3), np.zeros(3), 1.0)  # right x, down y, forward z; sees as far to each side as half the depth


def colored(vertices, faces, colors=None):
    vertices = np.float32(vertices)
    attributes = None if colors is None else np.hstack([np.float32(colors), np.zeros((len(vertices), 3), np.float32)])
    return Mesh(vertices, np.int32(faces), attributes)


def square(left, top, right, bottom, depth, color=(1, 1, 1)):
    """Two triangles that face a camera that looks along z."""
    vertices = [[left, top, depth], [left, bottom, depth], [right, bottom, depth], [right, top, depth]]
    return colored(vertices, [[0, 1, 2], [0, 2, 3]], [color] * 4)


def both(first, second):
    return Mesh(
        np.vstack([first.vertices, second.vertices]),
        np.vstack([first.faces, second.faces + np.int32(len(first.vertices))]),
        np.vstack([first.vertex_attributes, second.vertex_attributes]),
    )


def lit(color, normal):
    """The bytes of a colour on a face with this normal, towards the viewer."""
    light = np.dot(normal, TO_LIGHT) / np.linalg.norm(TO_LIGHT)
    return np.rint(255 * np.array(color) * (SHADOW + (1 - SHADOW) * max(light, 0)))


def test_a_square_covers_its_pixels_without_a_gap():
    picture = np.asarray(mesh_picture(square(-0.5, 0, 1, 1, 2.0), AHEAD, 32), int)
    expected = np.full((32, 32, 3), 255)
    expected[16:, 8:] = lit((1, 1, 1), (0, 0, -1))  # x from -0.5 to 1 at a depth of 2 is a quarter to all of the width
    np.testing.assert_array_equal(picture, expected)


def test_the_nearer_hides_the_farther_in_any_order_and_from_both_sides():
    far, near = square(-1, -1, 1, 1, 2.0, (1, 0, 0)), square(-0.5, -0.5, 0.5, 0.5, 1.5, (0, 1, 0))
    first, second = (np.asarray(mesh_picture(mesh, AHEAD, 24)) for mesh in (both(far, near), both(near, far)))
    assert np.array_equal(first, second)
    turned = Mesh(near.vertices, near.faces[:, ::-1].copy(), near.vertex_attributes)
    assert np.array_equal(mesh_picture(both(far, turned), AHEAD, 24), first)
    assert (first[12, 12] == lit((0, 1, 0), (0, 0, -1))).all() and (first[1, 1] == lit((1, 0, 0), (0, 0, -1))).all()


def test_faces_that_cross_are_divided_where_they_meet():
    wall = square(-1, -1, 1, 1, 2.0, (1, 0, 0))
    ramp = colored([[-3, -3, 1], [-3, 3, 1], [3, 3, 3], [3, -3, 3]], [[0, 1, 2], [0, 2, 3]], [(0, 0, 1)] * 4)
    picture = np.asarray(mesh_picture(both(wall, ramp), AHEAD, 32), int)
    assert (picture[:, :16, 0] == 0).all() and (picture[:, :16, 2] > 0).all()  # nearer on the left
    assert (picture[:, 16:, 0] > 0).all() and (picture[:, 16:, 2] == 0).all()


def test_colors_follow_the_perspective():
    # From a depth of 1 at the left border to 3 at the right border: the middle of the picture is a quarter of the way.
    mesh = colored(
        [[-0.5, -2, 1], [-0.5, 2, 1], [1.5, 2, 3], [1.5, -2, 3]], [[0, 1, 2], [0, 2, 3]], [[0] * 3] * 2 + [[1] * 3] * 2
    )
    picture = np.asarray(mesh_picture(mesh, AHEAD, 101), float)[50, :, 0]
    full = lit((1, 1, 1), np.array([1, 0, -1]) / np.sqrt(2))[0]
    assert abs(picture[50] / full - 0.25) < 0.02
    assert (np.diff(picture) >= -1).all()


def test_light_comes_from_above_and_the_left():
    def shown(right, down):
        """A face whose depth falls to the right and below by as much for each step."""
        mesh = colored([[x, y, 5 - right * x - down * y] for x, y in ((-9, -5), (0, 5), (9, -5))], [[0, 1, 2]])
        normal = -np.array([right, down, 1])
        pixel = np.asarray(mesh_picture(mesh, AHEAD, 16))[8, 8]
        assert pixel.tolist() == lit([GREY] * 3, normal / np.linalg.norm(normal)).tolist()
        return pixel[0]

    assert shown(0.2, 0) > shown(0, 0) > shown(-0.2, 0)
    assert shown(0, 0.2) > shown(0, 0) > shown(0, -0.2)


def test_what_is_behind_the_camera_or_beside_the_picture_is_not_drawn():
    for mesh in (
        square(-1, -1, 1, 1, -2.0),
        square(3, 3, 4, 4, 2.0),
        colored([[0, 0, 0], [1, 0, 2], [0, 1, 2]], [[0, 1, 2]]),
        colored(np.zeros((0, 3)), np.zeros((0, 3))),
    ):
        assert (np.asarray(mesh_picture(mesh, AHEAD, 16, (1, 2, 3))) == (1, 2, 3)).all()


def test_a_closed_ball_shows_no_hole():
    points = np.random.default_rng(0).standard_normal((2000, 3))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    mesh = colored(points, ConvexHull(points).simplices)
    for camera in orbit(3, radius=4.0):
        picture = mesh_picture(mesh, camera, 97, (255, 0, 0))
        drawn = np.asarray(picture)[..., 1] > 0
        # The outline of a unit ball from a distance of 4 has a radius of focal / sqrt(15).
        assert abs(drawn.mean() - np.pi * camera.focal**2 / 15) < 0.02
        for line in [*drawn, *drawn.T]:
            assert np.count_nonzero(np.diff(line.astype(int), prepend=0, append=0)) in (0, 2)
        assert mesh_picture(mesh, camera, 97, (255, 0, 0)).tobytes() == picture.tobytes()
    assert mesh_picture(mesh, camera, 1).size == (1, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": 0}, "size: expected an integer of at least 1, given 0"),
        ({"size": 2049}, "size: expected an integer up to 2048, given 2049"),
        ({"background": (1, 2)}, r"background: expected three integers from 0 to 255, given \(1, 2\)"),
        ({"background": (1, 2, 256)}, "background: expected three integers"),
    ],
)
def test_bad_arguments(change, says):
    with pytest.raises(ValueError, match=says):
        mesh_picture(square(-1, -1, 1, 1, 2.0), AHEAD, **change)
