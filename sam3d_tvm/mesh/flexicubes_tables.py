"""The sign configurations of a cube: which of its edges are crossed, and how the crossings are gathered into dual vertices.

Everything follows from the corners. Corner k of a cube lies at (k & 1, k >> 1 & 1, k >> 2 & 1), and in configuration c those
corners k are inside whose bit k is set in c. Inside corners form regions along the edges of the cube, outside corners also
along the diagonals of its faces. So where the signs leave open how a face is divided, two inside corners across from each other
and the others outside, the inside ones are kept apart, and the cubes on both sides agree. A dual vertex stands for the sheet
between one inside and one outside region: Nielson, "Dual Marching Cubes", 2004.
"""

import numpy as np

CORNERS = np.arange(8)[:, None] >> np.arange(3) & 1  # [8, 3]

# Ends of the edges in the order of the weights that networks are trained for. Edges along x and z go up and those along y go
# down, so that a walk through the other two axes in ascending order is the same turn seen from the first end of each.
EDGES = np.array([[0, 1], [1, 5], [4, 5], [0, 4], [2, 3], [3, 7], [6, 7], [2, 6], [2, 0], [3, 1], [7, 5], [6, 4]])  # [12, 2]

_DIFFERENCE = np.arange(8)[:, None] ^ np.arange(8)  # [8, 8], bit i: the corners differ along axis i
_STEPS = CORNERS.sum(1)[_DIFFERENCE]  # [8, 8], edges of the cube from one corner to the other

INSIDE = np.arange(256)[:, None] >> np.arange(8) & 1 > 0  # [256, 8]


def _regions() -> np.ndarray:
    """The lowest corner of the region of each corner, int [256, 8]."""
    same = INSIDE[:, :, None] == INSIDE[:, None, :]
    joined = same & (np.where(INSIDE, 1, 2)[:, :, None] >= _STEPS)  # [256, 8, 8]
    for _ in range(3):  # paths of up to 8 steps
        joined = joined @ joined
    return joined.argmax(2)


def _sheets() -> tuple[np.ndarray, np.ndarray]:
    """The dual vertex of each edge, int [256, 12], -1 where it is not crossed, and how many there are, int [256]."""
    inside, regions = INSIDE[:, EDGES], _regions()[:, EDGES]  # [256, 12, 2]
    crossed = inside[..., 0] != inside[..., 1]
    # In the order of the inside regions, then of the outside regions.
    pair = np.where(inside[..., 0], regions @ [8, 1], regions @ [1, 8])
    configuration, edge = np.nonzero(crossed)
    present = np.zeros((256, 64), bool)
    present[configuration, pair[configuration, edge]] = True
    rank = present.cumsum(1) - 1
    return np.where(crossed, np.take_along_axis(rank, pair, 1), -1), present.sum(1)


def _open_faces() -> np.ndarray:
    """The step to the neighbour across the face that all crossings share in one dual vertex, int [256, 3]; 0 if there is none.

    Such a face has four crossed edges, two inside corners facing each other, which are joined around the rest of the cube.
    If the neighbour is in the same position, the edge between both dual vertices belongs to four quads. There is one face
    at most in a configuration.
    """
    regions = _regions()
    steps = np.zeros((256, 3), int)
    for first, last in np.argwhere(_STEPS == 2):
        axis = np.flatnonzero(CORNERS[first] == CORNERS[last])[0]
        others = [corner for corner in range(8) if _STEPS[corner, first] == _STEPS[corner, last] == 1]
        open_face = INSIDE[:, [first, last]].all(1) & ~INSIDE[:, others].any(1) & (regions[:, first] == regions[:, last])
        steps[open_face, axis] = 2 * CORNERS[first, axis] - 1
    return steps


SHEETS, SHEET_COUNTS = _sheets()
OPEN_FACES = _open_faces()


def _turns() -> np.ndarray:
    """The place of the cube among the four around each of its edges, int [12], as one walks around it."""
    # Each cube sees the edge at another place of the two axes that the edge does not follow.
    places = [CORNERS[first][CORNERS[first] == CORNERS[last]] for first, last in EDGES]  # [12] of [2]
    return np.array([[2, 3], [1, 0]])[tuple(np.transpose(places))]


TURNS = _turns()
