"""Mesh extraction: tables against another way to find them, closed surfaces of any field, and cubes that are missing."""

import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st

from sam3d_tvm.mesh.flexicubes import BETA, CHANNELS, CHANNELS_WITH_COLOR, COLOR, GAMMA, MAX_RESOLUTION, SDF, extract_mesh
from sam3d_tvm.mesh.flexicubes_tables import CORNERS, EDGES, OPEN_FACES, SHEET_COUNTS, SHEETS
from tests.tolerance import assert_close

WEIGHTS = slice(BETA.start, GAMMA + 1)


def all_cubes(resolution):
    """Every cube of a grid: int32 [R^3, 4]."""
    return np.pad(np.argwhere(np.ones([resolution] * 3)), ((0, 0), (1, 0))).astype(np.int32, order="C")


def features(coords, sdf, rng=None):
    """Features [N, 101] of cubes, all of which say `sdf` [R + 1, R + 1, R + 1] of their corners; the rest is random, or 0."""
    shape = (len(coords), CHANNELS_WITH_COLOR)
    feats = np.zeros(shape, np.float32) if rng is None else rng.standard_normal(shape, np.float32)
    feats[:, SDF] = sdf[tuple((coords[:, None, 1:] + CORNERS).transpose(2, 0, 1))] + 1 / (len(sdf) - 1)
    return feats


def euler_characteristic(mesh):
    edges = np.sort(np.stack([mesh.faces, np.roll(mesh.faces, -1, 1)], -1).reshape(-1, 2), axis=1)
    return len(mesh.vertices) - len(np.unique(edges, axis=0)) + len(mesh.faces)


def volume(mesh):
    return np.linalg.det(mesh.vertices[mesh.faces].astype(np.float64)).sum() / 6


def linked(configuration):
    """Dual vertices by walking: crossed edges are linked through the faces of the cube, around each inside corner where a face
    has four. Returns sets of edges, and the faces, as steps, whose four are in one set."""
    inside = [configuration >> corner & 1 for corner in range(8)]
    crossed = [edge for edge, (a, b) in enumerate(EDGES) if inside[a] != inside[b]]
    label = {edge: edge for edge in crossed}
    open_faces = []
    for axis, side in np.ndindex(3, 2):
        ends = {edge: set(EDGES[edge]) for edge in crossed if (CORNERS[EDGES[edge], axis] == side).all()}
        if len(ends) == 4:
            open_faces.append((axis, side, list(ends)))
        for a, b in ((a, b) for a in ends for b in ends):
            if len(ends) == 2 or any(inside[corner] for corner in ends[a] & ends[b]):
                label = {edge: label[a] if value == label[b] else value for edge, value in label.items()}
    steps = [(axis, 2 * side - 1) for axis, side, edges in open_faces if len({label[edge] for edge in edges}) == 1]
    return {frozenset(edge for edge in crossed if label[edge] == value) for value in label.values()}, steps


def test_tables_equal_a_walk_around_the_faces():
    for configuration in range(256):
        sheets, steps = linked(configuration)
        found = SHEETS[configuration]
        assert {frozenset(np.flatnonzero(found == sheet)) for sheet in range(SHEET_COUNTS[configuration])} == sheets
        assert (found == -1).sum() == 12 - sum(map(len, sheets))
        assert [(axis, OPEN_FACES[configuration, axis]) for axis in np.flatnonzero(OPEN_FACES[configuration])] == steps
    assert np.bincount(SHEET_COUNTS).tolist() == [2, 162, 82, 8, 2]
    assert np.count_nonzero(OPEN_FACES.any(1)) == 36


def test_a_sphere():
    resolution, radius = 24, 0.4
    places = np.moveaxis(np.indices([resolution + 1] * 3), 0, -1) / resolution - 0.5
    coords = all_cubes(resolution)
    feats = features(coords, np.linalg.norm(places, axis=-1) - radius)
    mesh = extract_mesh(coords, feats, resolution, True)
    assert mesh.is_watertight and euler_characteristic(mesh) == 2
    # A crossing is off by at most the sagitta of an edge, a dual vertex by that of its cube's diagonal.
    sagitta = 3 / resolution**2 / (8 * radius)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), radius, atol=sagitta)
    assert 0 < 4 / 3 * np.pi * radius**3 - volume(mesh) < 4 * np.pi * radius**2 * 2 * sagitta
    outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert ((mesh.vertex_normals * outward).sum(1) > 0.99).all()
    assert (mesh.vertex_attributes == 0.5).all()


@given(
    st.integers(2, 7), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.sampled_from([0.0, 0.2, 0.8]), st.integers(0, 2**32 - 1)
)
def test_any_field_with_an_empty_border_is_watertight(resolution, density, missing, seed):
    rng = np.random.default_rng(seed)
    sdf = np.ones([resolution + 1] * 3)
    core = sdf[1:-1, 1:-1, 1:-1]
    core[...] = np.where(rng.random(core.shape) < density, -1, 1) * rng.random(core.shape)
    coords = all_cubes(resolution)
    coords = coords[rng.random(len(coords)) >= missing]
    mesh = extract_mesh(coords, features(coords, sdf, rng), resolution, True)
    assert mesh.is_watertight
    assert euler_characteristic(mesh) % 2 == 0
    assert (np.abs(mesh.vertices) <= 0.5 + 1 / resolution).all()
    assert np.array_equal(np.unique(mesh.faces), np.arange(len(mesh.vertices)))  # no vertex is left over


def test_an_inside_that_reaches_the_border_is_left_open():
    coords = all_cubes(3)
    sdf = np.where(np.indices([4] * 3)[0] < 2, -1.0, 1.0)  # half of the grid
    mesh = extract_mesh(coords, features(coords, sdf), 3, True)
    assert len(mesh.vertices) == 9 and len(mesh.faces) == 8 and not mesh.is_watertight
    np.testing.assert_allclose(mesh.face_normals, np.tile(np.float32([1, 0, 0]), (8, 1)), atol=1e-6)


def test_missing_cubes_have_zeros_as_weights_and_their_corners_a_distance_of_one():
    rng = np.random.default_rng(0)
    sdf = np.ones([9] * 3)
    sdf[4:6, 4:6, 4:6] = -0.5
    coords = all_cubes(8)
    feats = features(coords, sdf)
    color = rng.standard_normal((9, 9, 9, 6), np.float32) * (sdf < 0)[..., None]
    feats[:, COLOR] = color[tuple((coords[:, None, 1:] + CORNERS).transpose(2, 0, 1))].reshape(-1, 48)
    # The middle cube, around which all corners have their values, and about half of those around it.
    some = (coords[:, 1:] == 4).all(1) | (np.abs(coords[:, 1:] - 4) <= 1).all(1) & (rng.random(len(coords)) < 0.5)
    feats[some, WEIGHTS] = rng.standard_normal((np.count_nonzero(some), 21))
    whole = extract_mesh(coords, feats, 8, True)
    alone = extract_mesh(coords[some], feats[some], 8, True)
    assert len(alone.vertices) == 26  # one in each cube around the middle
    for name in ("vertices", "faces", "vertex_attributes"):
        assert np.array_equal(getattr(whole, name), getattr(alone, name)), name


def random_case(resolution=6, seed=3):
    rng = np.random.default_rng(seed)
    coords = all_cubes(resolution)
    return coords, features(coords, np.pad(rng.standard_normal([resolution - 1] * 3), 1, constant_values=1.0), rng), resolution


def test_arguments_are_not_changed_and_may_be_of_any_kind():
    coords, feats, resolution = random_case()
    before = feats.copy()
    mesh = extract_mesh(coords, feats, resolution, True)
    assert np.array_equal(feats, before)
    feats.setflags(write=False)
    tensors = tvm.runtime.tensor(coords), tvm.runtime.tensor(before)
    for again in (extract_mesh(coords, feats, resolution, True), extract_mesh(*tensors, resolution, True)):
        assert again.vertices.tobytes() == mesh.vertices.tobytes()
        assert again.faces.tobytes() == mesh.faces.tobytes()
        assert again.vertex_attributes.tobytes() == mesh.vertex_attributes.tobytes()


def test_colors_do_not_change_the_shape_and_rows_may_come_in_any_order():
    coords, feats, resolution = random_case()
    mesh = extract_mesh(coords, feats, resolution, True)
    plain = extract_mesh(coords, np.ascontiguousarray(feats[:, :CHANNELS]), resolution, False)
    assert plain.vertex_attributes is None
    assert np.array_equal(plain.vertices, mesh.vertices) and np.array_equal(plain.faces, mesh.faces)
    order = np.random.default_rng(0).permutation(len(coords))
    shuffled = extract_mesh(coords[order] + np.int32([5, 0, 0, 0]), feats[order], resolution, True)
    assert np.array_equal(shuffled.faces, mesh.faces)
    assert_close(shuffled.vertices, mesh.vertices)
    assert_close(shuffled.vertex_attributes, mesh.vertex_attributes)


@pytest.mark.parametrize("level", [-1.0, 1.0])
@pytest.mark.parametrize("count", [0, 8])
def test_no_surface(count, level):
    coords = all_cubes(2)[:count]
    mesh = extract_mesh(coords, features(coords, np.full([3] * 3, level)), 2, True)
    assert mesh.vertices.shape == (0, 3) and mesh.faces.shape == (0, 3) and mesh.vertex_attributes.shape == (0, 6)
    assert mesh.is_watertight


def test_features_as_large_as_they_can_be():
    coords, feats, resolution = random_case()
    mesh = extract_mesh(coords, np.where(feats < 0, np.float32(-3e38), np.float32(3e38)), resolution, True)
    assert mesh.is_watertight and len(mesh.faces) > 100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"coords": all_cubes(6)[:, 1:].copy()}, r"coords: expected int32 \[any, 4\], given int32 \[216, 3\]"),
        ({"coords": all_cubes(6).astype(np.int64)}, "coords: expected int32"),
        ({"coords": all_cubes(7)[:216]}, r"coords: expected values from 0 to 5, given \[0, 0, 0, 6\] in row 6"),
        ({"coords": all_cubes(6) - np.int32([0, 0, 0, 1])}, r"coords: expected values .* given \[0, 0, 0, -1\] in row 0"),
        ({"coords": np.repeat(all_cubes(6)[:108], 2, 0)}, r"coords: .* every row once, given \[0, 0, 0, 0\] again in row 1"),
        ({"coords": all_cubes(6) * 0 + np.int32(range(216))[:, None]}, "coords: expected rows of one batch element, given 216"),
        ({"feats": np.zeros((215, 101), np.float32)}, r"feats: expected float32 \[216, 101\], given float32 \[215, 101\]"),
        ({"feats": np.zeros((216, 101))}, "feats: expected float32"),
        ({"feats": np.full((216, 101), np.nan, np.float32)}, "feats: expected finite values, given 21816 that are not"),
        ({"use_color": False}, r"feats: expected float32 \[216, 53\], given float32 \[216, 101\]"),
        ({"resolution": 0}, "resolution: expected an integer of at least 1, given 0"),
        ({"resolution": MAX_RESOLUTION + 1}, "resolution: expected at most 1024, given 1025"),
    ],
)
def test_bad_arguments(change, says):
    coords, feats, resolution = random_case()
    with pytest.raises(ValueError, match=says):
        extract_mesh(**{"coords": coords, "feats": feats, "resolution": resolution, "use_color": True} | change)
