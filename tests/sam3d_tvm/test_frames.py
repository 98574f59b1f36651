"""Frames: the table in words, and the matrices between them against axes written out by hand."""

import numpy as np
import pytest

from sam3d_tvm.frames import CAMERA, FRAMES, GLTF, OBJECT, OPENCV, OPENGL, Frame, frame, matrix, rotation

# (right, away, up) of one point, and what every frame calls it.
POINT = {OBJECT: (1, 2, 3), CAMERA: (-1, 3, 2), OPENCV: (1, -3, 2), OPENGL: (1, 3, -2), GLTF: (1, 3, -2)}


@pytest.mark.parametrize("source", POINT, ids=lambda frame: frame.name)
@pytest.mark.parametrize("target", POINT, ids=lambda frame: frame.name)
def test_the_matrix_between_two_frames_takes_a_point_to_what_the_other_calls_it(source, target):
    assert np.array_equal(rotation(source, target) @ POINT[source], POINT[target])
    assert np.array_equal(matrix(source, target) @ [*POINT[source], 1], [*POINT[target], 1])
    assert np.linalg.det(rotation(source, target)) == 1


def test_words():
    assert {name: found.words for name, found in FRAMES.items()} == {
        "object": "x right, y away, z up",
        "camera": "x left, y up, z away",
        "opencv": "x right, y down, z away",
        "opengl": "x right, y up, z towards the viewer",
        "gltf": "x right, y up, z towards the viewer",
    }


def test_a_left_handed_frame_and_a_name_that_is_none_are_refused():
    with pytest.raises(ValueError, match=r"frame 'mirrored': expected a right-handed frame"):
        Frame("mirrored", right=(1, 0, 0), up=(0, 1, 0), away=(0, 0, 1))
    with pytest.raises(ValueError, match=r"frame: expected one of 'object', .*, given 'world'"):
        frame("world")
