"""Mesh extraction: from a signed distance and learned weights in sparse cubes to triangles, by FlexiCubes.

Shen et al., "Flexible Isosurface Extraction for Gradient-Based Mesh Optimization", ACM Transactions on Graphics, 2023. That is
dual marching cubes (Nielson, 2004) in its manifold form (Schaefer, Ju and Warren, "Manifold Dual Contouring", 2007; Wenger,
"Isosurfaces", 2013), in which every cube has weights of its own: alpha at its corners moves the crossings along its edges,
beta at its edges weighs them, and gamma says how its quads are split.

The grid of corners is dense, but only its signed distance is ever computed everywhere: what else there is, where edges cross.
"""

import numpy as np

from sam3d_tvm.checks import check_finite, check_size
from sam3d_tvm.mesh.flexicubes_tables import CORNERS, EDGES, INSIDE, OPEN_FACES, SHEET_COUNTS, SHEETS, TURNS
from sam3d_tvm.mesh.mesh import Mesh
from sparse_ops.eager.arrays import as_kind, as_tensor

# Channels of the features of a cube; where each of its corners has several, those of the first corner come first.
SDF, DEFORM, BETA, ALPHA, GAMMA, COLOR = slice(0, 8), slice(8, 32), slice(32, 44), slice(44, 52), 52, slice(53, 101)
CHANNELS, CHANNELS_WITH_COLOR = 53, 101

MAX_RESOLUTION = 1024  # the corners of the grid are held in memory
UNTOUCHED_SDF = 1.0  # at corners that no given cube has, also those between given ones
DEFORM_LIMIT = 1 - 1e-8  # of half the width of a cube, by which a corner may move
WEIGHT_LIMIT, GAMMA_LIMIT = 0.99, 0.005  # alpha and beta stay within 1 +- the first, gamma away from 0 and 1 by the second


def extract_mesh(coords, feats, resolution: int, use_color: bool) -> Mesh:
    """The surface between the corners of a grid whose signed distance is below 0, the inside, and the others.

    coords: int32 [N, 4] of (batch, x, y, z), cubes of one batch element, each once, coordinates from 0 to resolution - 1.
    feats: float32 [N, 101] with `use_color`, [N, 53] without, the output of the mesh decoder: signed distance at the 8 corners
    (x fastest), from which 1 / resolution is taken, deformation [8, 3], weights beta [12], alpha [8] and gamma, colour [8, 6].
    Both may be numpy, torch or TVM arrays, and are not changed.

    A corner has the mean of what the given cubes around it say, or a signed distance of 1 and zeros if there are none. All
    cubes of the grid take part; one that is not given has zeros as its weights. The grid reaches from -0.5 to 0.5 along every
    axis; faces turn counterclockwise seen from outside; attributes are the sigmoid of the colours, 6 channels. Where the inside
    keeps away from the border of the grid, the mesh is watertight. No cubes, or none with corners on both sides, give an empty
    mesh.

    Raises ValueError for other shapes or dtypes, features that are not finite, coordinates that are out of the grid, come twice
    or are of several batch elements, and a resolution outside 1 to 1024.
    """
    check_size("resolution", resolution, 1)
    if resolution > MAX_RESOLUTION:
        raise ValueError(f"resolution: expected at most {MAX_RESOLUTION}, given {resolution}")
    channels = CHANNELS_WITH_COLOR if use_color else CHANNELS
    cells = _checked_cells(coords, resolution)  # [N, 3]
    feats = as_kind(as_tensor(feats, "feats", ("float32",), (len(cells), channels)), "numpy")
    check_finite("feats", feats)

    corners = corner_numbers(cells, resolution)  # [N, 8]
    sdf = grid_sdf(corners, feats, resolution)  # [(R + 1)^3]
    cubes, cases = surface_cubes(sdf, resolution)  # [S], [S]
    beta, alpha, gamma = cube_weights(cubes, cells, feats, resolution)  # [S, 12], [S, 8], [S]
    rows, edges = np.nonzero(SHEETS[cases] >= 0)  # [K], [K]: the crossed edges of every cube
    ends = crossed_ends(cubes, rows, edges, resolution)  # [K, 2]
    duals = _number_duals(cases, rows, edges)  # [K]

    needed = np.zeros(len(sdf), bool)
    needed[ends] = True
    numbers = np.flatnonzero(needed)  # [C]
    values = corner_positions(numbers, corner_means(numbers, corners, feats[:, DEFORM], resolution), resolution)  # [C, 3]
    if use_color:
        values = np.hstack([values, _sigmoid(corner_means(numbers, corners, feats[:, COLOR], resolution))])  # [C, 9]

    # The weight of the second end of an edge, at which the signed distances, times alpha, would cancel. In float64, in which no
    # product of two float32 vanishes.
    levels = sdf[ends].astype(np.float64) * alpha[rows[:, None], EDGES[edges]]  # [K, 2]
    second = levels[:, 0] / (levels[:, 0] - levels[:, 1])
    weights = beta[rows, edges].astype(np.float64)
    total = np.bincount(duals, weights)  # [V]
    lower, upper = np.searchsorted(numbers, ends).T
    means = [
        np.bincount(duals, weights * ((1 - second) * column[lower] + second * column[upper])) / total for column in values.T
    ]
    vertices = np.stack(means, 1).astype(np.float32)  # [V, 3 or 9]
    faces = _triangles(ends, duals, TURNS[edges], sdf, gamma[rows])
    return Mesh(np.ascontiguousarray(vertices[:, :3]), faces, np.ascontiguousarray(vertices[:, 3:]) if use_color else None)


def corner_numbers(cells: np.ndarray, resolution: int) -> np.ndarray:
    """The corners of cubes, cells [N, 3], in the flattened grid: int64 [N, 8]."""
    side = resolution + 1
    strides = np.array([side * side, side, 1])
    return (cells @ strides)[:, None] + CORNERS @ strides


def grid_sdf(corners: np.ndarray, feats: np.ndarray, resolution: int) -> np.ndarray:
    """The signed distance at every corner of the grid, float32 [(R + 1)^3]: the mean over the given cubes, less 1 / R."""
    given = feats[:, SDF] - np.float32(1 / resolution)
    owners, count = corners.reshape(-1), (resolution + 1) ** 3
    counts = np.bincount(owners, minlength=count)
    sdf = np.full(count, UNTOUCHED_SDF, np.float32)
    touched = np.flatnonzero(counts)
    sdf[touched] = np.bincount(owners, given.reshape(-1), count)[touched] / counts[touched]
    return sdf


def surface_cubes(sdf: np.ndarray, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """The cubes of the grid with corners on both sides, ascending in the flattened grid of cubes, int64 [S], and their sign
    configurations, int64 [S], by `flexicubes_tables`.

    Where two neighbours would meet in an edge of four quads, both take the opposite configuration, whose dual vertices keep the
    crossings on their common face apart. The crossed edges are the same.
    """
    inside = (sdf < 0).reshape([resolution + 1] * 3)
    configurations = np.zeros([resolution] * 3, np.uint8)
    for corner, (x, y, z) in enumerate(CORNERS):
        configurations |= inside[x : x + resolution, y : y + resolution, z : z + resolution].astype(np.uint8) << corner
    configurations = configurations.reshape(-1)
    cubes = np.flatnonzero((configurations > 0) & (configurations < len(INSIDE) - 1))
    cases = configurations[cubes].astype(np.int64)

    steps = OPEN_FACES[cases]  # [S, 3]
    neighbours = np.stack(np.unravel_index(cubes, [resolution] * 3), 1) + steps
    within = ((neighbours >= 0) & (neighbours < resolution)).all(1) & steps.any(1)
    across = np.ravel_multi_index(neighbours[within].T, [resolution] * 3)
    inverted = np.flatnonzero(within)[OPEN_FACES[configurations[across]].any(1)]
    cases[inverted] = len(INSIDE) - 1 - cases[inverted]
    return cubes, cases


def cube_weights(
    cubes: np.ndarray, cells: np.ndarray, feats: np.ndarray, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of `cubes` [S]: beta [S, 12] and alpha [S, 8], 0.01 to 1.99, and gamma [S], 0.005 to 0.995, all float32.

    Those of cubes that are not among `cells` [N, 3] come of zeros.
    """
    rows = np.full(resolution**3, -1, np.int32)
    rows[np.ravel_multi_index(cells.T, [resolution] * 3)] = np.arange(len(cells))
    rows = rows[cubes]
    raw = np.zeros((len(cubes), GAMMA + 1 - BETA.start))  # [S, 21]
    raw[rows >= 0] = feats[rows[rows >= 0], BETA.start : GAMMA + 1]
    # Rounded before they are compared, so that equal products are equal.
    alpha_beta = (1 + WEIGHT_LIMIT * np.tanh(raw[:, :-1])).astype(np.float32)
    gamma = (GAMMA_LIMIT + WEIGHT_LIMIT * _sigmoid(raw[:, -1])).astype(np.float32)
    split = BETA.stop - BETA.start
    return alpha_beta[:, :split], alpha_beta[:, split:], gamma


def crossed_ends(cubes: np.ndarray, rows: np.ndarray, edges: np.ndarray, resolution: int) -> np.ndarray:
    """Corner numbers of the ends of edge `edges[k]` of cube `cubes[rows[k]]`: int64 [K, 2]."""
    corners = corner_numbers(np.stack(np.unravel_index(cubes, [resolution] * 3), 1), resolution)  # [S, 8]
    return corners[rows[:, None], EDGES[edges]]


def corner_means(numbers: np.ndarray, corners: np.ndarray, feats: np.ndarray, resolution: int) -> np.ndarray:
    """Means over the given cubes at the corners `numbers` [C], ascending: float64 [C, channels], 0 where there is none.

    feats [N, 8 * channels]: those of the corners [N, 8].
    """
    owners = np.full((resolution + 1) ** 3, -1, np.int32)
    owners[numbers] = np.arange(len(numbers))
    owners = owners[corners]  # [N, 8]
    near = (owners >= 0).any(1)
    owners = owners[near].reshape(-1)  # [8 M]
    wanted = owners >= 0
    owners = owners[wanted]
    columns = feats[near].reshape(len(wanted), feats.shape[1] // 8)[wanted].T
    counts = np.maximum(np.bincount(owners, minlength=len(numbers)), 1)
    return np.stack([np.bincount(owners, column, len(numbers)) / counts for column in columns], 1)


def corner_positions(numbers: np.ndarray, deform: np.ndarray, resolution: int) -> np.ndarray:
    """Where the corners `numbers` [C] are, moved by the tanh of `deform` [C, 3]: float64 [C, 3]."""
    places = np.stack(np.unravel_index(numbers, [resolution + 1] * 3), 1)
    return (places + DEFORM_LIMIT / 2 * np.tanh(deform)) / resolution - 0.5


def _number_duals(cases: np.ndarray, rows: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The dual vertex of every crossing, int64 [K]. Cubes with one come first, then those with two, and so on."""
    counts = SHEET_COUNTS[cases]
    order = np.argsort(counts, kind="stable")
    first = np.empty_like(counts)
    first[order] = np.cumsum(counts[order]) - counts[order]
    return first[rows] + SHEETS[cases[rows], edges]


def _triangles(ends: np.ndarray, duals: np.ndarray, turns: np.ndarray, sdf: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Two triangles for every crossed edge with cubes on all sides, int32 [F, 3].

    For each crossing: ends [K, 2] of its edge, its dual vertex [K], the place of its cube around the edge [K], gamma [K] of the
    cube.
    """
    order = np.lexsort((turns, ends[:, 1], ends[:, 0]))
    changes = np.flatnonzero((np.diff(ends[order], axis=0) != 0).any(1)) + 1
    starts = np.append(0, changes)
    whole = starts[np.diff(np.append(starts, len(order))) == 4]
    around = order[whole[:, None] + np.arange(4)]  # [Q, 4]: crossings, in one turn around each edge
    inward = sdf[ends[around[:, 0], 0]] >= 0  # seen from its first end, which is outside, an edge leads inside
    around = np.concatenate([around[inward], around[~inward][:, ::-1]])

    quads, gamma = duals[around], gamma[around]
    diagonal = gamma[:, 0] * gamma[:, 2] > gamma[:, 1] * gamma[:, 3]
    split = np.where(diagonal[:, None], [0, 1, 2, 0, 2, 3], [0, 1, 3, 3, 1, 2])  # [Q, 6]
    return np.take_along_axis(quads, split, 1).reshape(-1, 3).astype(np.int32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """By the hyperbolic tangent, which never overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _checked_cells(coords, resolution: int) -> np.ndarray:
    """The cubes int64 [N, 3] of one batch element; ValueError for what `extract_mesh` does not take."""
    coords = as_kind(as_tensor(coords, "coords", ("int32",), (None, 4)), "numpy")
    if (coords[:, 0] != coords[:1, 0]).any():
        raise ValueError(f"coords: expected rows of one batch element, given {len(np.unique(coords[:, 0]))} of them")
    cells = coords[:, 1:].astype(np.int64)
    if (beyond := ((cells < 0) | (cells >= resolution)).any(1)).any():
        row = np.flatnonzero(beyond)[0]
        raise ValueError(f"coords: expected values from 0 to {resolution - 1}, given {coords[row].tolist()} in row {row}")
    keys = np.ravel_multi_index(cells.T, [resolution] * 3)
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(same):
        row = order[same[0] + 1]
        raise ValueError(f"coords: expected every row once, given {coords[row].tolist()} again in row {row}")
    return cells
